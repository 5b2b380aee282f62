from __future__ import annotations

import json
import os
import stat
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlcc.artifact import Artifact, account, c_identifier, check_output, write_artifact
from dlcc.artifact.toolchain import Toolchain, _cache_dir, zig_target
from dlcc.artifact.weights import content_hash, weights_image
from dlcc.errors import DlccError, ExitCode
from dlcc.objects.elf import SHT_DYNSYM, ElfError, ElfFile, isolate
from dlcc.runtime.loader import load
from tests.runtime.programs import BIAS, RUNTIME, files_of, renamed, row_program, row_reference

X = np.random.default_rng(3).normal(size=(24, 16)).astype(np.float32)


def test_same_program_gives_same_bytes(rows: Artifact, kernels: bytes, tmp_path: Path) -> None:
    second = write_artifact(
        row_program(kernels), tmp_path / "another name" / "deep", emit=("o", "a", "so")
    )
    first_files, second_files = files_of(rows.folder), files_of(second.folder)
    assert first_files.keys() == second_files.keys()
    assert len(first_files) == 11
    assert [n for n in first_files if first_files[n] != second_files[n]] == []


def test_files_name_no_path_and_no_date(rows: Artifact) -> None:
    for name, content in files_of(rows.folder).items():
        assert b"/tmp" not in content, name
        assert os.fsencode(Path.home()) + b"/" not in content, name
        assert os.fsencode(RUNTIME) not in content, name


def test_manifest_lists_files_and_program(rows: Artifact) -> None:
    manifest = Artifact.open(rows.folder).manifest
    assert manifest == rows.manifest
    on_disk = files_of(rows.folder)
    assert {n: r["size"] for n, r in manifest["files"].items()} == {
        n: len(c) for n, c in on_disk.items() if n != "manifest.json"
    }
    assert manifest["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": [24, 16], "bytes": 24 * 16 * 4}
    ]
    assert [s["layer"] for s in manifest["steps"]] == ["bias", "activation"]
    assert all(s["code_bytes"] > 0 for s in manifest["steps"])
    storage = {"pack": "speed", "file_bytes": 256, "other_bytes": 189, "memory_bytes": 131}
    assert json.loads(on_disk["report.json"]) == {
        "layers": [{"kernel": "add_row", "macs": 384}],
        "storage": {**storage, "layers": [{"layer": "bias", "bytes": 67}]},
    }
    rows.verify()


def test_library_exports_only_the_interface_and_needs_only_libc(rows: Artifact) -> None:
    elf = ElfFile((rows.folder / "librows.so").read_bytes())
    exported = {s.name for s in elf.symbols(SHT_DYNSYM) if s.section}
    suffixes = (
        "info",
        "create",
        "create_in",
        "create_variant",
        "create_shape_profile",
        "find_shape_profile",
        "shape_profile",
        "run",
        "profile",
        "threads",
        "variant",
        "pin",
        "destroy",
        "error",
    )
    assert exported == {f"rows_{s}" for s in suffixes}
    assert set(elf.needed()) <= {"libc.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2"}
    assert sorted(elf.needed()) == rows.manifest["needed"]


def test_objects_define_only_prefixed_symbols_and_no_debug_sections(rows: Artifact) -> None:
    elf = ElfFile((rows.folder / "rows.o").read_bytes())
    defined = [s.name for s in elf.symbols() if s.is_global and s.section]
    assert "rows_kernel_add_row" in defined
    assert all(name.startswith("rows_") for name in defined)
    assert not [s.name for s in elf.sections if "debug" in s.name]


@pytest.mark.parametrize("embed", [False, True])
def test_account_covers_every_byte(embed: bool, kernels: bytes, tmp_path: Path) -> None:
    artifact = write_artifact(
        row_program(kernels), tmp_path / "out", emit=("so", "a", "o"), embed=embed
    )
    rows = account(artifact)
    sums: dict[str, int] = {}
    for name, _, size in rows:
        assert size > 0
        sums[name] = sums.get(name, 0) + size
    assert sums == {n: len(c) for n, c in files_of(artifact.folder).items()}
    holders = ["librows.a", "librows.so", "rows.o"] if embed else ["rows.weights"]
    prefix = ".dlcc_weights " if embed else ""
    found = [(n, size) for n, section, size in rows if section == f"{prefix}bias.b"]
    assert found == [(n, 64) for n in holders]
    assert ("rows.weights" in sums) is not embed


def test_account_refuses_a_cut_library(copied: Path) -> None:
    library = copied / "librows.so"
    library.write_bytes(library.read_bytes()[:-100])
    with pytest.raises(DlccError, match="cut off") as caught:
        account(Artifact.open(copied))
    assert caught.value.code == ExitCode.ARTIFACT


def test_existing_artifact_is_replaced_and_foreign_files_stay(
    kernels: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_artifact(row_program(kernels, "first"), out)
    (out / "main.c").write_text("int main;")
    (out / "data").mkdir()
    write_artifact(row_program(kernels, "second"), out)
    names = sorted(os.listdir(out))
    assert names == [
        "INTEGRATION.md",
        "data",
        "example.c",
        "libsecond.so",
        "main.c",
        "manifest.json",
        "report.json",
        "second.h",
        "second.pc",
        "second.weights",
        "secondConfig.cmake",
    ]
    assert os.listdir(tmp_path) == ["out"]
    assert stat.S_IMODE(out.stat().st_mode) & 0o055 == 0o055 & ~_mask()


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_replacing_works_without_renameat2(
    kernels: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlcc.artifact.folder._exchange", lambda a, b: False)
    for name in ("first", "second"):
        write_artifact(row_program(kernels, name), tmp_path / "out")
    assert (tmp_path / "out" / "libsecond.so").exists()
    assert not (tmp_path / "out" / "libfirst.so").exists()
    assert os.listdir(tmp_path) == ["out"]


def test_other_folders_are_not_replaced(kernels: bytes, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DlccError, match="not empty and not a dlcc artifact") as caught:
        write_artifact(row_program(kernels), tmp_path)
    assert caught.value.code == ExitCode.OUTPUT
    with pytest.raises(DlccError, match="not empty and not a dlcc artifact"):
        check_output(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]
    with pytest.raises(DlccError, match="a file has that name"):
        write_artifact(row_program(kernels), tmp_path / "thesis.txt")


def test_empty_folder_and_link_to_a_folder_are_filled(kernels: bytes, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_artifact(row_program(kernels), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "manifest.json").exists()


def test_unwritable_output_is_one_clear_error(kernels: bytes) -> None:
    for place in ("/proc/dlcc/out", "/dev/null/out", "/proc"):
        with pytest.raises(DlccError) as caught:
            write_artifact(row_program(kernels), place)
        assert caught.value.code == ExitCode.OUTPUT
    for place in ("/dev/null/out", "/proc", "/dev/null"):
        with pytest.raises(DlccError) as caught:
            check_output(place)
        assert caught.value.code == ExitCode.OUTPUT


def test_early_check_passes_and_changes_nothing(rows: Artifact, tmp_path: Path) -> None:
    check_output(rows.folder)
    check_output(tmp_path)
    check_output(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []


def test_failed_compilation_leaves_the_old_artifact(
    kernels: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_artifact(row_program(kernels), out)
    before = files_of(out)
    monkeypatch.setattr(
        Toolchain, "compile", lambda self, *a, **k: self._run(["cc", "-c", "absent.c"])
    )
    with pytest.raises(DlccError, match=r"absent\.c") as caught:
        write_artifact(row_program(kernels, "other"), out)
    assert caught.value.code == ExitCode.INTERNAL
    assert files_of(out) == before
    assert os.listdir(tmp_path) == ["out"]


def test_unknown_emit_and_triple_are_refused(kernels: bytes, tmp_path: Path) -> None:
    for emit in ((), ("so", "dll")):
        with pytest.raises(DlccError, match="cannot emit") as caught:
            write_artifact(row_program(kernels), tmp_path / "out", emit=emit)
        assert caught.value.code == ExitCode.USAGE
    program = replace(row_program(kernels), triple="mips-unknown-linux-gnu")
    with pytest.raises(DlccError, match="no runtime for mips") as caught:
        write_artifact(program, tmp_path / "out")
    assert caught.value.code == ExitCode.TARGET
    assert not (tmp_path / "out").exists()


def test_zig_target_fixes_the_oldest_glibc() -> None:
    assert zig_target("x86_64-unknown-linux-gnu") == "x86_64-linux-gnu.2.17"
    assert zig_target("x86_64-linux-gnu.2.28") == "x86_64-linux-gnu.2.28"


def test_linker_cache_is_where_the_user_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(tmp_path / "chosen"))
    assert _cache_dir() == tmp_path / "chosen"
    monkeypatch.delenv("ZIG_GLOBAL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert _cache_dir() == tmp_path / "cache" / "dlcc" / "zig"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fallback = tmp_path / f"dlcc-zig-{os.getuid()}"
    assert _cache_dir() == fallback
    assert stat.S_IMODE(fallback.stat().st_mode) == 0o700
    fallback.rmdir()
    fallback.write_text("a stranger's file")
    with pytest.raises(DlccError, match="no place for the linker's cache") as caught:
        _cache_dir()
    assert caught.value.code == ExitCode.OUTPUT


def test_manifest_extra_is_kept_and_may_not_repeat(kernels: bytes, tmp_path: Path) -> None:
    extra = {"source": {"sha256": "00"}, "options": {"bits": 8}}
    write_artifact(row_program(kernels), tmp_path / "out", manifest_extra=extra)
    manifest = Artifact.open(tmp_path / "out").manifest
    assert {k: manifest[k] for k in extra} == extra
    with pytest.raises(ValueError, match="triple"):
        write_artifact(row_program(kernels), tmp_path / "o2", manifest_extra={"triple": 1})


ODD_NAMES = {
    "class": "class",
    "int": "int",
    "size": "net_size",
    "uint8": "net_uint8",
    "pthread": "net_pthread",
    "2net": "net_2net",
    "ResNet-50 v2.onnx": "ResNet_50_v2_onnx",
    "naïve café": "naive_cafe",
    "模型": "network",
    "": "network",
    '*/ "quo\\te" ??/ \n%s': "quo_te_s",
    "__x__": "net_x",
    "__xy__": "xy",
    "W": "net_W",
    "Example": "net_Example",
    "dlcc": "net_dlcc",
    "a" * 200: "a" * 64,
}


def test_c_identifiers() -> None:
    assert {name: c_identifier(name) for name in ODD_NAMES} == ODD_NAMES


@pytest.mark.parametrize("name", ["class", "模型", '*/ "quo\\te" ??/ \n%s', "pthread", "2net", "x"])
def test_odd_names_compile_and_run(name: str, kernels: bytes, tmp_path: Path) -> None:
    program = row_program(kernels)
    tensors = {
        "inputs": (replace(program.inputs[0], name=f"in {name}"),),
        "outputs": (replace(program.outputs[0], name=f"out {name}"),),
        "steps": tuple(replace(s, layer=f"{s.layer} {name}") for s in program.steps),
    }
    artifact = write_artifact(replace(renamed(program, name), **tensors), tmp_path / "out")
    assert artifact.symbol == c_identifier(name)
    with load(tmp_path / "out") as model:
        result = model.run({f"in {name}": X})
    np.testing.assert_array_equal(result[f"out {name}"], row_reference(X))


def test_kernel_names_that_are_no_identifiers_stay_apart(kernels: bytes) -> None:
    code, names = isolate(kernels, lambda name: f"p.{name}")
    assert names["relu"] == "p.relu"
    elf = ElfFile(code)
    assert {"p.relu", "p.add_row"} <= {s.name for s in elf.symbols()}
    assert not {"relu", "add_row"} & {s.name for s in elf.symbols()}
    assert ".text" in {s.name for s in elf.sections}


def test_elf_reader_refuses_other_bytes(kernels: bytes) -> None:
    for data in (b"", b"\x7fELF", b"MZ" * 100, kernels[:200], kernels[:-64]):
        with pytest.raises(ElfError):
            ElfFile(data)


@pytest.mark.parametrize("size", [0, 8, 64, 8 * 5000, 8 * (1 << 20) + 64])
def test_content_hash_is_the_plain_sum(size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    mask, total = 2**64 - 1, size
    words = struct.unpack(f"<{size // 8}Q", content)
    for index in [*range(min(len(words), 5000)), *range(max(5000, len(words) - 10), len(words))]:
        total += _mix(words[index], index)
    if len(words) > 6000:  # the long middle by differences: flip words there instead
        total = content_hash(content)
        changed = bytearray(content)
        changed[8 * 6000 : 8 * 6001] = bytes(8)
        total += _mix(0, 6000) - _mix(words[6000], 6000)
        content = bytes(changed)
    assert content_hash(content) == total & mask


def _mix(word: int, index: int) -> int:
    mask = 2**64 - 1
    word = (word + (index + 1) * 0x9E3779B97F4A7C15) & mask
    word ^= word >> 32
    word = word * 0xD6E8FEB86659FD93 & mask
    return word ^ word >> 32


def test_weights_image_layout(rows: Artifact) -> None:
    image = (rows.folder / "rows.weights").read_bytes()
    fields = struct.unpack_from("<8sIIQQQQ", image)
    assert fields[:5] == (b"DLCCWTS\0", 1, 64, 131, 64 + 192)
    assert len(image) == 64 + 192
    assert image[128:192] == BIAS.tobytes()
    assert fields[5] == content_hash(image[64:])
    assert f"{fields[6]:016x}" == rows.manifest["fingerprint"]
    assert len(weights_image(b"", 1)) == 64
