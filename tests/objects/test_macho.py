"""Mach-O objects are read, renamed and merged; what cannot be is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlcc.objects import ObjectError, isolate, read_object, rename_symbols
from dlcc.objects.macho import N_EXT, MachOError, MachOFile
from dlcc.objects.merge import merge
from tests.runtime.programs import zig

ADDER = """
#include <string.h>
static const int table[4] = {1, 2, 4, 8};
__attribute__((visibility("hidden"))) int kernel(int *at, int n) {
  memset(at, 1, n);
  return table[n & 3];
}
"""
CALLER = """
extern int kernel(int *at, int n) __attribute__((visibility("hidden")));
static _Thread_local char seen;
static const char *const names[] = {"one", "two"};
static int zeros[100];
const char *name(int i) { return seen ? names[i] : 0; }
int run(int n) { seen = 1; return kernel(zeros, n); }
"""


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("objects")
    made = []
    for name, text in (("caller", CALLER), ("adder", ADDER)):
        (folder / f"{name}.c").write_text(text)
        flags = ("-g", "-O2", "-ffile-prefix-map=" + str(folder) + "=.")
        source, output = folder / f"{name}.c", folder / f"{name}.o"
        zig("cc", "-target", "aarch64-macos.12.0", *flags, "-c", source, "-o", output)
        made.append(output.read_bytes())
    return made


def external(data: bytes) -> dict[str, bool]:
    """Names that other objects see, and whether they are defined."""
    return {n.name: n.is_defined for n in MachOFile(data).nlists if n.type & N_EXT}


def test_merged_objects_bind_to_each_other(objects: list[bytes]) -> None:
    assert external(objects[1]) == {"_kernel": True, "_memset": False}
    made = merge(objects)
    assert made == merge(objects)
    assert external(made) == {
        "_name": True,
        "_run": True,
        "__tlv_bootstrap": False,
        "_memset": False,
    }
    file = MachOFile(made)
    names = {s.full_name for s in file.mach_sections}
    assert not {n for n in names if n.startswith(("__DWARF", "__LD"))}
    assert all(s.address % (1 << s.align) == 0 for s in file.mach_sections)
    (variables,) = (s for s in file.mach_sections if s.name == "__thread_vars")
    assert variables.align >= 3
    symbols = {s.name: s for s in file.symbols()}
    both = symbols["run"].size + symbols["name"].size + symbols["kernel"].size
    assert both == next(s.size for s in file.mach_sections if s.name == "__text")
    index = file.symbols().index(symbols["kernel"])
    assert index in file.relocated()
    assert merge([made]) == made


def test_isolated_symbols_are_renamed_and_hidden(objects: list[bytes]) -> None:
    code, renamed = isolate(objects[1], lambda name: f"net_{name}")
    assert renamed == {"kernel": "net_kernel"}
    defined = [s.name for s in read_object(code).symbols() if s.is_global and s.section]
    assert defined == ["net_kernel"]
    assert external(merge([code])).get("_net_kernel") is None


def test_renamed_symbols_still_meet(objects: list[bytes]) -> None:
    renamed = [rename_symbols(code, lambda name: name.replace("kernel", "net")) for code in objects]
    before, after = (
        [{s.name for s in read_object(code).symbols() if s.is_global} for code in group]
        for group in (objects, renamed)
    )
    assert all("kernel" in names for names in before)
    assert after == [{n.replace("kernel", "net") for n in names} for names in before]
    assert external(merge(renamed)) == external(merge(objects))


def test_what_cannot_be_merged_is_refused(objects: list[bytes]) -> None:
    with pytest.raises(MachOError, match="two objects define _kernel"):
        merge([objects[1], objects[1]])
    with pytest.raises(MachOError, match="not a 64-bit Mach-O file"):
        merge([b"\x7fELF" + bytes(100)])
    intel = bytearray(objects[0])
    intel[4] = 7
    with pytest.raises(MachOError, match="not of 64-bit ARM"):
        read_object(bytes(intel))
    linked = bytearray(objects[0])
    linked[12] = 6  # MH_DYLIB
    with pytest.raises(MachOError, match="not a relocatable object"):
        merge([bytes(linked)])


def test_cut_off_files_are_refused(objects: list[bytes]) -> None:
    data = merge(objects)
    for length in range(0, len(data) - 8, 7):
        with pytest.raises(ObjectError):
            read_object(data[:length])


def test_no_object_is_none(tmp_path: Path) -> None:
    with pytest.raises(ObjectError):
        read_object(b"!<arch>\n")
