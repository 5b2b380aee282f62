"""Packed weights files: the same content as mapped ones, and nothing else from damaged ones."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.artifact import Artifact, account, coder, manifest, packed, write_artifact
from dlcc.artifact.coder import UNCODED, Stream, code
from dlcc.artifact.csource import unpack_source
from dlcc.artifact.forms import FORMS, KINDS, Form, smallest, store
from dlcc.artifact.runtime import STEM
from dlcc.artifact.toolchain import Toolchain
from dlcc.artifact.weights import content_hash
from dlcc.errors import DlccError, ExitCode
from dlcc.program import Arg, FilterTransform, Program, Step, TensorInfo, WeightEntry
from dlcc.runtime.loader import load
from targets.kernels.winograd_transform import matrices, transform_weights
from tests.runtime.programs import HERE, TRIPLE, files_of, row_program, zig_cc

Array = np.ndarray
RNG = np.random.default_rng(3)


def _program(
    kernels: bytes, arrays: list[Array], filters: FilterTransform | None = None
) -> Program:
    """Gives its weights out as they are in memory; the last array is made from ``filters``."""
    blob, entries = bytearray(), []
    for index, array in enumerate(arrays):
        blob += bytes(-len(blob) % 64)
        entries.append(
            WeightEntry(f"l{index}", "w", len(blob), array.nbytes, "dense<>", array.itemsize)
        )
        blob += array.tobytes() + bytes(64)
    size = len(blob)
    return Program(
        name="net",
        inputs=(),
        outputs=(TensorInfo("y", "uint8", (size,)),),
        steps=(Step("all", "copy", (Arg("weights"), Arg("output")), size),),
        arena_bytes=0,
        weights=bytes(blob),
        weight_entries=tuple(entries),
        object_code=kernels,
        triple=TRIPLE,
        features=(),
        transforms={} if filters is None else {entries[-1].offset: filters},
    )


def _content(folder: Path) -> bytes:
    with load(folder) as model:
        return bytes(model())


def _patterns(dtype: str) -> list[Array]:
    """Rows with long and short runs of zeros, few and many numbers, rising numbers, and nothing."""
    top = np.iinfo(dtype).max
    many = RNG.integers(0, top, 3000, dtype, endpoint=True)
    few = RNG.choice(many[:200], 3000)
    sparse = np.where(RNG.random(3000) < 0.1, few, 0).astype(dtype)
    far = np.zeros(3000, dtype)
    far[[5, 900, 901, 2999]] = [1, top, 7, top // 2]
    rising = np.cumsum(RNG.integers(0, 5, 3000)).astype(dtype)
    ends = [np.zeros(0, dtype), np.zeros(77, dtype), np.full(1, top, dtype), far[:900]]
    return [many, few, sparse, far, rising, *ends]


def _filters(m: int, outputs: int, channels: int, lanes: int) -> tuple[Array, FilterTransform]:
    """Transformed filters as the Winograd kernel reads them, and what they are made from."""
    book = RNG.standard_normal(20).astype(np.float32)
    shape = (outputs, channels, 3, 3)
    weights = np.where(RNG.random(shape) < 0.4, RNG.choice(book, shape), np.float32(0))
    made = transform_weights(weights, m)
    blocks = -(-outputs // lanes)
    whole = np.zeros((len(made), blocks * lanes, channels), np.float32)
    whole[:, :outputs] = made
    lined = whole.reshape(len(made), blocks, lanes, channels).transpose(0, 1, 3, 2)
    source = FilterTransform(weights.tobytes(), outputs, channels, lanes, matrices(m)[1])
    return np.ascontiguousarray(lined).view("<u4").reshape(-1), source


def _takes(form: Form, array: Array) -> bool:
    try:
        store(array, form)
    except ValueError:
        return False
    return True


def test_every_form_unpacks_to_the_same_bytes(
    kernels: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every form of every pattern it takes, of transformed filters too, in one file."""
    patterns = [a for dtype in ("uint8", "<u2", "<u4") for a in _patterns(dtype)]
    pairs = [(form, a) for form in FORMS for a in patterns if _takes(form, a)]
    assert {form for form, _ in pairs} == set(FORMS)
    chosen = iter([form for form, _ in pairs] + [Form("gaps", book=True, differences=False)])
    monkeypatch.setattr(packed, "smallest", lambda elements, _cost: store(elements, next(chosen)))
    transformed, source = _filters(4, 20, 5, 16)
    program = _program(kernels, [*(a for _, a in pairs), transformed], source)
    write_artifact(program, tmp_path / "out", pack="size")
    assert next(chosen, None) is None
    assert _content(tmp_path / "out") == program.weights


@pytest.mark.parametrize(("m", "outputs", "channels", "lanes"), [(2, 3, 1, 4), (4, 33, 7, 16)])
def test_transformed_filters_are_made_at_load(
    m: int, outputs: int, channels: int, lanes: int, kernels: bytes, tmp_path: Path
) -> None:
    transformed, source = _filters(m, outputs, channels, lanes)
    program = _program(kernels, [RNG.integers(0, 9, 50, np.uint8), transformed], source)
    artifact = write_artifact(program, tmp_path / "out", pack="size")
    assert _content(tmp_path / "out") == program.weights
    size = artifact.manifest["files"]["net.weights"]["size"]
    assert size < len(source.filters) / 2 + 400  # 40 % of the numbers, of 20 different ones


def test_both_packs_and_places_give_the_same_content(kernels: bytes, tmp_path: Path) -> None:
    program = _program(kernels, _patterns("<u4"))
    for pack, embed in (("speed", False), ("size", False), ("size", True)):
        folder = tmp_path / f"{pack}{embed}"
        artifact = write_artifact(program, folder, pack=pack, embed=embed)
        assert artifact.manifest["weights"]["pack"] == pack
        assert _content(folder) == program.weights
    packed_bytes = files_of(tmp_path / "sizeFalse")["net.weights"]
    assert len(packed_bytes) < len(files_of(tmp_path / "speedFalse")["net.weights"]) / 3


def test_equal_programs_give_equal_bytes_and_no_new_symbols(kernels: bytes, tmp_path: Path) -> None:
    program = _program(kernels, _patterns("<u2"))
    kinds = ("so", "a", "o")
    first = write_artifact(program, tmp_path / "a", pack="size", emit=kinds)
    write_artifact(program, tmp_path / "b", pack="size", emit=kinds)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert all(str(tmp_path).encode() not in c for c in files_of(tmp_path / "a").values())
    plain = write_artifact(program, tmp_path / "c", emit=kinds)
    assert first.manifest["needed"] == plain.manifest["needed"]
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(tmp_path / "a" / "libnet.so")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [s for s in symbols if "unpack" in s] == []


def test_c_program_links_the_static_library(kernels: bytes, tmp_path: Path) -> None:
    write_artifact(row_program(kernels), tmp_path / "out", emit=("a",), pack="size", embed=True)
    flags = ["-I", tmp_path / "out", HERE / "caller.c", tmp_path / "out" / "librows.a"]
    zig_cc(*flags, "-o", tmp_path / "caller", "-lpthread")
    done = subprocess.run([tmp_path / "caller"], capture_output=True, text=True, env={})
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.parametrize("embed", [False, True])
def test_account_and_report_cover_every_byte(embed: bool, kernels: bytes, tmp_path: Path) -> None:
    program = _program(kernels, _patterns("<u4"))
    artifact = write_artifact(program, tmp_path / "out", pack="size", embed=embed)
    sums: dict[str, int] = {}
    for name, _, size in account(artifact):
        sums[name] = sums.get(name, 0) + size
    assert sums == {n: len(c) for n, c in files_of(artifact.folder).items()}
    stored = json.loads((tmp_path / "out" / "report.json").read_text())["storage"]
    layers = sum(row["bytes"] for row in stored["layers"])
    assert layers + stored["other_bytes"] == stored["file_bytes"]
    streams = sum(row["size"] for row in artifact.manifest["weights"]["streams"])
    assert layers == streams == sum(e["stored"] for e in artifact.manifest["weights"]["entries"])
    if not embed:
        assert stored["file_bytes"] == sums["net.weights"]


def test_the_report_of_a_mapped_file_covers_it_too(rows: Artifact) -> None:
    stored = json.loads((rows.folder / "report.json").read_text())["storage"]
    assert stored["pack"] == "speed"
    assert stored["file_bytes"] == (rows.folder / "rows.weights").stat().st_size
    assert sum(r["bytes"] for r in stored["layers"]) + stored["other_bytes"] == stored["file_bytes"]


def test_other_packs_are_refused(kernels: bytes, tmp_path: Path) -> None:
    with pytest.raises(DlccError, match="cannot pack for tiny") as caught:
        write_artifact(row_program(kernels), tmp_path / "out", pack="tiny")  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.USAGE
    assert not (tmp_path / "out").exists()


def test_bytes_of_no_constant_are_a_fault(kernels: bytes, tmp_path: Path) -> None:
    program = row_program(kernels)
    changed = replace(program, weights=b"\1" + program.weights[1:])
    with pytest.raises(DlccError, match="belong to no constant") as caught:
        write_artifact(changed, tmp_path / "out", pack="size")
    assert caught.value.code == ExitCode.INTERNAL


@pytest.fixture(scope="module")
def patterns(kernels: bytes) -> Program:
    transformed, source = _filters(4, 20, 5, 16)
    arrays = [a for dtype in ("uint8", "<u2", "<u4") for a in _patterns(dtype)]
    return _program(kernels, [*arrays, transformed], source)


@pytest.fixture(scope="module")
def artifact(patterns: Program, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_artifact(patterns, tmp_path_factory.mktemp("packed") / "out", pack="size")


def _replace(source: Artifact, folder: Path, image: bytes) -> Path:
    """A copy with another weights file, of which the manifest knows."""
    shutil.copytree(source.folder, folder)
    (folder / "net.weights").write_bytes(image)
    record = json.loads((folder / "manifest.json").read_text())
    record["files"]["net.weights"] = manifest.file_record(image)
    record["checksum"] = manifest.checksum(record)
    (folder / "manifest.json").write_bytes(manifest.dump_json(record))
    return folder


def _rehashed(image: bytearray) -> bytes:
    struct.pack_into("<Q", image, 32, content_hash(bytes(image[64:])))
    return bytes(image)


DAMAGES = {
    "cut": "bytes where",
    "format": "weights format 1, this library reads format 2",
    "content size": "header contradicts",
    "hash of the streams": "hash of its content",
    "a stream": "hash of its content",
    "hash of the content": "hash of its unpacked content",
    "number of streams": "streams are damaged",
    "coder's settings": "streams are damaged",
    "zero": "header contradicts",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(damage: str, artifact: Artifact, tmp_path: Path) -> None:
    image = bytearray((artifact.folder / "net.weights").read_bytes())
    if damage == "cut":
        del image[-8:]
    elif damage in ("number of streams", "coder's settings"):
        image[64 + 2 * (damage != "number of streams")] = 0xF0
        image[:] = _rehashed(image)
    else:
        offsets = {"format": 8, "content size": 17, "hash of the streams": 32, "a stream": 300}
        offsets |= {"hash of the content": 48, "zero": 60}
        image[offsets[damage]] ^= 3 if damage == "format" else 0x40
    with pytest.raises(DlccError, match=DAMAGES[damage]) as caught:
        load(_replace(artifact, tmp_path / "copy", bytes(image)))
    assert caught.value.code == ExitCode.ARTIFACT


def test_packs_do_not_take_each_others_files(kernels: bytes, tmp_path: Path) -> None:
    program = row_program(kernels, "net")
    mapped = write_artifact(program, tmp_path / "mapped")
    write_artifact(program, tmp_path / "packed", pack="size")
    image = (tmp_path / "packed" / "net.weights").read_bytes()
    with pytest.raises(DlccError, match=r"bytes where|weights format 2"):
        load(_replace(mapped, tmp_path / "copy", image))


def test_memory_that_is_not_there_is_an_error(kernels: bytes, tmp_path: Path) -> None:
    """48 MB of zeros take nothing in the file; the process may have less than that."""
    program = _program(kernels, [np.zeros(12 << 20, np.uint32)])
    artifact = write_artifact(program, tmp_path / "out", pack="size")
    assert artifact.manifest["files"]["net.weights"]["size"] < 1000
    (tmp_path / "main.c").write_text(
        "#include <stdio.h>\n#include <string.h>\n#include <sys/resource.h>\n"
        '#include "net.h"\n'
        "int main(int count, char **arguments) {\n"
        "  struct rlimit limit = {(rlim_t)32 << 20, (rlim_t)32 << 20};\n  net_t *net;\n"
        "  if (count != 2 || setrlimit(RLIMIT_AS, &limit) != 0) return 2;\n"
        "  if (net_create(arguments[1], 1, &net) != NET_OUT_OF_MEMORY || net) return 1;\n"
        "  puts(net_error());\n  return 0;\n}\n"
    )
    flags = [f"-I{tmp_path / 'out'}", f"-Wl,-rpath,{tmp_path / 'out'}", tmp_path / "main.c"]
    zig_cc("-D_GNU_SOURCE", *flags, tmp_path / "out" / "libnet.so", "-o", tmp_path / "main")
    command = [tmp_path / "main", tmp_path / "out" / "net.weights"]
    done = subprocess.run(command, capture_output=True, text=True, env={})
    assert done.returncode == 0
    assert done.stdout == "no memory for the unpacked weights of 50331712 bytes\n"


FAULTS = {
    "panic": 'if (work_bytes > 0) @panic("no");',
    "index": "content[0..content_bytes][content_bytes + work_bytes] = 0;",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_check_of_the_reader_is_an_error(
    fault: str, kernels: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No damage is known that gets that far, so a fault is put into the reader."""
    text = unpack_source(STEM).replace("unpacker.run(", f"{FAULTS[fault]}\n    unpacker.run(")
    assert FAULTS[fault] in text
    monkeypatch.setattr("dlcc.artifact.runtime.unpack_source", lambda _symbol: text)
    program = _program(kernels, _patterns("uint8"))
    write_artifact(program, tmp_path / "out", pack="size")
    for _ in range(2):
        with pytest.raises(DlccError, match="streams are damaged") as caught:
            load(tmp_path / "out")
        assert caught.value.code == ExitCode.ARTIFACT


def _mutator(sanitizer: str | None, folder: Path) -> Path:
    """The program mutate.c for a packed file of this network."""
    (folder / "unpack.zig").write_text(unpack_source("net"))
    Toolchain(TRIPLE, folder).compile_zig("unpack.zig", "unpack.o")
    sources = [str(HERE / "mutate.c"), str(folder / "unpack.o")]
    if sanitizer is None:
        zig_cc("-D_GNU_SOURCE", *sources, "-o", folder / "mutate")
        return folder / "mutate"
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc")
    command = [gcc, "-D_GNU_SOURCE", f"-fsanitize={sanitizer}", *sources]
    built = subprocess.run([*command, "-o", str(folder / "mutate")], capture_output=True)
    if b"cannot find" in built.stderr:
        pytest.skip(f"gcc has no {sanitizer} sanitizer")
    assert built.returncode == 0, built.stderr.decode()
    return folder / "mutate"


@pytest.mark.parametrize("sanitizer", [None, "address,undefined"])
def test_no_damage_leads_out_of_the_memory(
    sanitizer: str | None, patterns: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams with any bytes changed or cut off, past the hash: a failure, or another content.

    Of streams that are not coded any change is a change of what they say.
    """
    program = _mutator(sanitizer, tmp_path)
    images = {"coded": packed.pack(patterns, 1).image}
    monkeypatch.setattr(coder, "code", lambda data: Stream(UNCODED, len(data), data))
    images["plain"] = packed.pack(patterns, 1).image
    for name, image in images.items():
        (tmp_path / name).write_bytes(image)
        arguments = [tmp_path / name, str(len(patterns.weights)), str(1 << 20), "1000"]
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        if "unexpected memory mapping" in done.stderr:
            pytest.skip("the sanitizer cannot work with this kernel's address layout")
        assert (done.stderr, done.returncode) == ("", 0)
        failed, rounds = [int(word) for word in done.stdout.split() if word.isdigit()][:2]
        assert rounds / 5 < failed < rounds


def test_unpacking_is_compiled_for_other_architectures(tmp_path: Path) -> None:
    (tmp_path / "unpack.zig").write_text(unpack_source("net"))
    for triple in ("aarch64-unknown-linux-gnu", "armv7-unknown-linux-gnueabihf"):
        Toolchain(triple, tmp_path).compile_zig("unpack.zig", f"{triple}.o")
        assert 4_000 < (tmp_path / f"{triple}.o").stat().st_size < 60_000


# -- forms and coder ---------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=600), st.sampled_from([2, 5, 250]))
def test_coded_streams_hold_their_bytes(data: bytes, modulus: int) -> None:
    import lzma

    plain = bytes(b % modulus for b in data) * 3
    made = code(plain)
    assert made.decoded == len(plain)
    assert len(made.data) <= len(plain)
    if made.properties == UNCODED:
        assert made.data == plain
        return
    lc, lp, pb = made.properties % 9, made.properties // 9 % 5, made.properties // 45
    filters = [{"id": lzma.FILTER_LZMA1, "lc": lc, "lp": lp, "pb": pb}]
    assert lzma.decompress(made.data, lzma.FORMAT_RAW, filters=filters) == plain


def _entropy_cost(data: bytes) -> int:
    counts = np.bincount(np.frombuffer(data, np.uint8)).astype(np.float64)
    counts = counts[counts > 0]
    return int(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def test_the_smallest_form_fits_the_numbers() -> None:
    book = RNG.integers(0, 2**32, 16, np.uint32)
    dense = RNG.choice(book, 20_000)
    sparse = np.where(RNG.random(20_000) < 0.02, dense, 0).astype(np.uint32)
    rising = np.cumsum(RNG.integers(1, 9, 20_000)).astype(np.uint32)
    anything = RNG.integers(0, 2**32, 20_000, np.uint32)
    assert smallest(dense, _entropy_cost).form == Form(book=True)
    assert smallest(sparse, _entropy_cost).form == Form("gaps", book=True)
    assert smallest(rising, _entropy_cost).form.differences
    assert smallest(anything, _entropy_cost).form == Form()


def test_a_form_that_only_the_sample_takes_is_not_taken() -> None:
    values = np.zeros(1 << 18, np.uint32)
    values[: 1 << 12] = RNG.integers(0, 2**32, 1 << 12, np.uint32)
    assert not smallest(values, _entropy_cost).form.book


@pytest.mark.parametrize("limit", [2**bits - 1 for bits in range(2, 9)])
def test_gaps_fill_up_runs_they_cannot_hold(limit: int) -> None:
    from dlcc.artifact.forms import _filled

    runs = np.array([0, 1, limit - 1, limit, limit + 1, 5 * limit, 3])
    symbols = _filled(runs, limit).tolist()
    found, run = [], 0
    for symbol in symbols:
        run += symbol
        if symbol < limit:
            found.append(run)
            run = 0
    assert found == runs.tolist()
    assert max(symbols) == limit


def test_streams_are_numbered_as_the_reader_numbers_them() -> None:
    text = unpack_source("net")
    names = text.split("const Kind = enum(u8) {")[1].split("}")[0]
    assert tuple(name.strip() for name in names.split(",")) == KINDS


def test_a_fraction_of_the_matrix_fits_its_bytes() -> None:
    for m in (2, 4):
        cells = [cell for row in matrices(m)[1] for cell in row]
        assert all(-128 <= c.numerator < 128 and c.denominator < 256 for c in cells)
        assert all(isinstance(c, Fraction) for c in cells)
