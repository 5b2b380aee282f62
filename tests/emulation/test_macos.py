"""Libraries for macOS: what they consist of, that programs link with them, and that they run.

There is no Mac here. The shared library runs under qemu, loaded by tests/emulation/macos.h.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ziglang

import dlcc
from dlcc.artifact import Artifact, account
from dlcc.artifact.toolchain import zig_target
from dlcc.artifact.write import write_artifact
from dlcc.cli.verifying import _weights_image
from dlcc.cycles.emulator import emulator_for
from dlcc.errors import DlccError
from dlcc.objects.macho import LC_BUILD_VERSION, LC_ID_DYLIB, MachOFile
from targets import get_target, missing_here
from tests.emulation.machine import NEWEST, run_network, start_network
from tests.emulation.test_packaging import STRICT, network
from tests.runtime.programs import zig
from tests.test_end_to_end import feed_for

SAMPLES = 6
TARGET = ("-target", "aarch64-macos.12.0", "-O2", "-nostdlib", "-lSystem")
PUBLIC = """info create create_in create_variant create_shape_profile find_shape_profile
shape_profile run profile threads variant pin destroy error"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, image=np.concatenate([feed_for(network(), s)["image"] for s in range(8)]))
    return path


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dlcc.CompileResult:
    out = tmp_path_factory.mktemp("macos") / "out"
    return dlcc.compile(
        network(),
        out,
        bits=8,
        target="arm:apple-m1",
        emit=("so", "a", "o"),
        name="net",
        calibration=data,
        threads=2,
    )


def again(made: dlcc.CompileResult, out: Path, **options: object) -> Path:
    """The same program in another form."""
    write_artifact(made.program, out, **{"name": "net", **options})
    return out


def samples() -> list[list[np.ndarray]]:
    return [[feed_for(network(), seed)["image"]] for seed in range(20, 20 + SAMPLES)]


@pytest.fixture(scope="module")
def wanted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the portable C of the network gives."""
    out = tmp_path_factory.mktemp("c") / "out"
    dlcc.compile(network(), out, bits=8, target="c", emit=("c",), name="net", calibration=data)
    source = (
        '#include <stdio.h>\n#include "net.h"\n'
        "static net_arena_t arena;\nstatic float x[243], y[5];\n"
        "int main(void) {\n  const void *in[] = {x};\n  void *out[] = {y};\n"
        "  while (fread(x, sizeof x, 1, stdin) == 1) {\n"
        "    if (net_run(&arena, in, out) != 0) return 1;\n"
        "    fwrite(y, sizeof y, 1, stdout);\n  }\n  return 0;\n}\n"
    )
    (out / "main.c").write_text(source)
    zig("cc", "-O1", out / "main.c", out / "net.c", "-o", out / "main")
    fed = b"".join(x.tobytes() for (x,) in samples())
    return subprocess.run([out / "main"], input=fed, capture_output=True, check=True).stdout


def symbols_of_macos() -> set[str]:
    """What libSystem has, as the list that comes with zig says."""
    folder = Path(ziglang.__file__).parent / "lib" / "libc" / "darwin"
    return set(re.findall(r"[\w$]+", (folder / "libSystem.tbd").read_text()))


def names_in(path: Path, *, defined: bool) -> Iterator[str]:
    for row in MachOFile(path.read_bytes()).nlists:
        if row.is_external and row.is_defined is defined:
            yield row.name


def test_objects_define_the_interface_and_need_libsystem(made, tmp_path):
    folder = made.artifact.folder
    public = {f"_net_{name}" for name in PUBLIC.split()}
    assert set(names_in(folder / "net.o", defined=True)) == public
    assert set(names_in(folder / "libnet.dylib", defined=True)) >= public
    assert not any("kernel" in n for n in names_in(folder / "libnet.dylib", defined=True))
    needed = set(names_in(folder / "net.o", defined=False))
    assert "_pthread_create" in needed
    assert needed - symbols_of_macos() == set()
    library = MachOFile((folder / "libnet.dylib").read_bytes())
    assert library.needed() == made.artifact.manifest["needed"] == ["/usr/lib/libSystem.B.dylib"]
    place = library.command(LC_ID_DYLIB)
    assert b"@rpath/libnet.dylib\0" in library.data[place[0] : sum(place)]
    for name in ("libnet.dylib", "net.o"):
        file = MachOFile((folder / name).read_bytes())
        at, _ = file.command(LC_BUILD_VERSION)
        assert file.data[at + 8 : at + 16] == bytes([1, 0, 0, 0, 0, 0, 12, 0])  # macOS 12.0
        assert not [s for s in file.mach_sections if s.segment == "__DWARF"]
    files = again(made, tmp_path / "again", emit=("so", "a", "o"))
    for name in ("libnet.dylib", "libnet.a", "net.o"):
        assert (files / name).read_bytes() == (folder / name).read_bytes()
    assert 0 < made.artifact.manifest["stack_bytes"] < 4096


@pytest.mark.skipif(shutil.which("llvm-objdump") is None, reason="no llvm-objdump")
def test_code_has_only_what_an_m1_has_and_leaves_its_platform_register_alone(made):
    command = ["llvm-objdump", "-d", "--no-show-raw-insn", made.artifact.folder / "net.o"]
    told = [
        subprocess.run([*command, f"--mattr={mattr}"], capture_output=True, text=True).stdout
        for mattr in ("+v8.4a,+fullfp16", "-dotprod")
    ]
    assert "sdot" in told[0]
    assert "<unknown>" not in told[0]
    assert "<unknown>" in told[1]
    assert not re.search(r"\b[xw]18\b", told[0])


def test_programs_link_with_every_form(made, tmp_path):
    folder = made.artifact.folder
    for form in ("net.o", "libnet.a", "libnet.dylib"):
        program = tmp_path / form.partition(".")[0]
        zig("cc", *TARGET, *STRICT, folder / "example.c", folder / form, "-o", program)
        file = MachOFile(program.read_bytes())
        assert file.file_type == 2  # MH_EXECUTE
        assert ("@rpath/libnet.dylib" in file.needed()) is (form == "libnet.dylib")
    page = (folder / "INTEGRATION.md").read_text()
    assert "cc example.c libnet.dylib -Wl,-rpath,@loader_path -o example\n" in page
    assert "-target aarch64-macos.12.0" in page
    assert "-lpthread" not in page + (folder / "net.pc").read_text()
    config = (folder / "netConfig.cmake").read_text()
    assert 'IMPORTED_SONAME "@rpath/libnet.dylib"' in config
    assert "Threads" not in config


def test_two_networks_link_into_one_program(made, tmp_path):
    left = made.artifact.folder
    right = again(made, tmp_path / "right", emit=("o",), name="other", embed=True)
    main = '#include "net.h"\n#include "other.h"\nint main(void) '
    main += "{ return net_info() == (void *)other_info(); }\n"
    (tmp_path / "main.c").write_text(main)
    objects = [left / "net.o", right / "other.o"]
    zig("cc", *TARGET, "-I", left, "-I", right, tmp_path / "main.c", *objects, "-o", tmp_path / "m")
    artifact = Artifact.open(right)
    assert _weights_image(artifact) == (left / "net.weights").read_bytes()
    for one in (artifact, made.artifact):
        sizes = {name: record["size"] for name, record in one.manifest["files"].items()}
        rows = account(one)
        assert all(sum(r[2] for r in rows if r[0] == name) == sizes[name] for name in sizes)


def test_linux_does_not_take_it_for_its_own(made):
    with pytest.raises(DlccError, match="for another machine"):
        dlcc.load(made.artifact.folder)
    with pytest.raises(DlccError, match="cannot be counted") as caught:
        emulator_for(made.program.triple)
    assert "--core apple-m1" in caught.value.fix
    with pytest.raises(DlccError, match="no runtime for aarch64-apple-ios"):
        zig_target("aarch64-apple-ios15.0.0")
    lacking = missing_here(get_target("arm:apple-m1"))
    assert lacking == ["aarch64"]


@NEWEST.missing
def test_the_library_runs(made, wanted, tmp_path):
    """All of it, threads too, but for libSystem: the same bytes as elsewhere."""
    assert len(wanted) == 20 * SAMPLES
    for threads in (1, 2):
        assert run_network(made.artifact.folder, NEWEST, samples(), threads) == wanted
    packed = again(made, tmp_path / "packed", pack="size")
    assert run_network(packed, NEWEST, samples()) == wanted
    embedded = again(made, tmp_path / "embedded", embed=True)
    assert run_network(embedded, NEWEST, samples()) == wanted


LLD = next(filter(None, map(shutil.which, ("ld64.lld", "ld64.lld-14", "ld64.lld-19"))), None)


@NEWEST.missing
@pytest.mark.skipif(LLD is None, reason="no ld64.lld")
def test_another_linker_takes_the_object(made, wanted, tmp_path):
    """LLVM's, which shares no code with zig's: its library runs, too, and exports no more."""
    folder = again(made, tmp_path / "other", emit=("a", "o"))
    listed = ", ".join(names_in(folder / "net.o", defined=False))
    stub = tmp_path / "libSystem.tbd"
    stub.write_text(
        "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\n"
        "install-name: '/usr/lib/libSystem.B.dylib'\nexports:\n"
        f"  - targets: [ arm64-macos ]\n    symbols: [ {listed}, dyld_stub_binder ]\n...\n"
    )
    command = [LLD, "-arch", "arm64", "-platform_version", "macos", "12.0", "12.0", "-dylib"]
    for inputs in (["net.o"], ["-all_load", "libnet.a"]):
        output = folder / "libnet.dylib"
        arguments = [*inputs, stub, "-o", output]
        done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        public = {f"_net_{name}" for name in PUBLIC.split()}
        assert set(names_in(output, defined=True)) == public
        assert run_network(folder, NEWEST, samples(), 2) == wanted


@NEWEST.missing
def test_refusals_are_in_words(made, tmp_path, monkeypatch):
    features = (*made.program.features, "i8mm")
    folder = tmp_path / "m2"
    write_artifact(replace(made.program, features=features), folder, name="net")
    monkeypatch.setenv("LACKS", "FEAT_I8MM")
    done = start_network(folder, NEWEST, samples())
    assert done.returncode == 3
    said = "the library needs i8mm, which this CPU lacks; compile with --target arm:apple-m1"
    assert said in done.stderr.decode()
    monkeypatch.delenv("LACKS")
    (folder / "net.weights").write_bytes(bytes(100))
    done = start_network(folder, NEWEST, samples())
    assert (done.returncode, b"has 100 bytes" in done.stderr) == (3, True)
    (folder / "net.weights").unlink()
    done = start_network(folder, NEWEST, samples())
    assert (done.returncode, b"no such file" in done.stderr) == (3, True)
