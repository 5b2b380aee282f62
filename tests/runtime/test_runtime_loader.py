from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlcc.artifact import Artifact, manifest, write_artifact
from dlcc.errors import DlccError, ExitCode
from dlcc.program import Arg, Program, Step, TensorInfo
from dlcc.runtime.loader import Model, load
from tests.runtime.programs import (
    TRIPLE,
    chain_program,
    floats,
    missing_feature,
    row_program,
    row_reference,
    scratch_program,
    sum_program,
)

RNG = np.random.default_rng(11)
X = RNG.normal(size=(24, 16)).astype(np.float32)


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 4])
def test_result_does_not_depend_on_threads(rows: Artifact, threads: int) -> None:
    with load(rows.folder, threads=threads) as model:
        assert 1 <= model.threads <= 4
        assert threads in (0, model.threads)
        for _ in range(50):
            x = RNG.normal(size=(24, 16)).astype(np.float32)
            np.testing.assert_array_equal(model(x), row_reference(x))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_item_is_computed_once(threads: int, kernels: bytes, tmp_path: Path) -> None:
    write_artifact(chain_program(kernels), tmp_path / "out")
    with load(tmp_path / "out", threads=threads) as model:
        x = np.arange(37, dtype=np.int32)
        for _ in range(30):
            np.testing.assert_array_equal(model(x), x + 400)


def test_threads_have_scratch_areas_of_their_own(kernels: bytes, tmp_path: Path) -> None:
    write_artifact(scratch_program(kernels), tmp_path / "out")
    x = RNG.integers(-9, 9, 999).astype(np.float32)
    for threads in (1, 4):
        with load(tmp_path / "out", threads=threads) as model:
            for _ in range(100):
                np.testing.assert_array_equal(model(x), x * (63 * 64 // 2))


@pytest.mark.parametrize(
    ("threads", "max_threads", "items", "parts"),
    [
        (1, 0, 8, [8]),
        (4, 0, 8, [2, 2, 2, 2]),
        (4, 1, 8, [8]),
        (4, 2, 8, [4, 4]),
        (4, 3, 10, [3, 3, 4]),
        (4, 9, 3, [1, 1, 1]),
    ],
)
def test_steps_are_split_as_asked(
    threads: int, max_threads: int, items: int, parts: list[int], kernels: bytes, tmp_path: Path
) -> None:
    program = replace(
        chain_program(kernels),
        inputs=(),
        outputs=(TensorInfo("y", "int32", (items,)),),
        steps=(Step("split", "span", (Arg("output"),), items, max_threads),),
    )
    write_artifact(program, tmp_path / "out")
    with load(tmp_path / "out", threads=threads) as model:
        result = model()
        assert isinstance(result, np.ndarray)
        assert result.tolist() == [part for part in parts for _ in range(part)]


def test_instances_run_concurrently_and_one_serves_many_threads(rows: Artifact) -> None:
    shared = load(rows.folder, threads=2)
    failures: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with load(rows.folder, threads=2) as own:
            for _ in range(60):
                x = rng.normal(size=(24, 16)).astype(np.float32)
                for model in (own, shared):
                    if not np.array_equal(model(x), row_reference(x)):
                        failures.append(f"{seed}: {model}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    shared.close()


def test_many_inputs_by_position_and_name(kernels: bytes, tmp_path: Path) -> None:
    write_artifact(sum_program(kernels), tmp_path / "out")
    arrays = [np.full(8, i, np.float32) for i in range(40)]
    with load(tmp_path / "out") as model:
        np.testing.assert_array_equal(model(*arrays), np.full(8, 780, np.float32))
        named = {f"in.{i}": a for i, a in enumerate(arrays)}
        np.testing.assert_array_equal(model.run(named)["total"], np.full(8, 780, np.float32))
        part = {k: v for k, v in named.items() if k not in ("in.0", "in.1")}
        np.testing.assert_array_equal(model(*arrays[:2], **part), np.full(8, 780, np.float32))


def test_several_outputs_and_sizes_zero(kernels: bytes, tmp_path: Path) -> None:
    program = replace(
        row_program(kernels),
        inputs=(floats(3), floats(0, 5, name="empty")),
        outputs=(floats(3, name="a"), floats(4, 0, name="none"), floats(3, name="b")),
        steps=(
            Step("a", "relu", (Arg("input"), Arg("output")), 3),
            Step("b", "add", (Arg("input"), Arg("input"), Arg("output", index=2)), 3),
            Step("nothing", "relu", (Arg("input"), Arg("output", index=1)), 0),
        ),
    )
    write_artifact(program, tmp_path / "out")
    x = np.array([-1, 0, 2], np.float32)
    with load(tmp_path / "out") as model:
        results = model(x, np.empty((0, 5), np.float32))
    assert isinstance(results, tuple)
    a, none, b = results
    assert a.tolist() == [0, 0, 2]
    assert none.shape == (4, 0)
    assert b.tolist() == [-2, 0, 4]


@pytest.mark.parametrize("embed", [False, True])
def test_program_without_steps(embed: bool, tmp_path: Path) -> None:
    program = Program("nothing", (), (), (), 0, b"", (), b"", TRIPLE, ())
    write_artifact(program, tmp_path / "out", embed=embed)
    with load(tmp_path / "out") as model:
        assert model() == ()
        assert model.run({}) == {}
        assert model.profile() == []


def test_embedded_weights_need_no_file(kernels: bytes, tmp_path: Path) -> None:
    write_artifact(row_program(kernels), tmp_path / "out", embed=True)
    assert not (tmp_path / "out" / "rows.weights").exists()
    with load(tmp_path / "out") as model:
        np.testing.assert_array_equal(model(X), row_reference(X))


def test_infos_and_repr(rows: Artifact) -> None:
    with load(rows.folder) as model:
        assert model.name == "rows"
        assert model.inputs == (TensorInfo("x", "float32", (24, 16)),)
        assert model.outputs == (TensorInfo("y", "float32", (24, 16)),)
        assert "rows" in repr(model)
    assert "closed" in repr(model)


def test_profile_times_each_step(rows: Artifact) -> None:
    with load(rows.folder, threads=2) as model:
        steps = model.profile(X)
        assert [(s.layer, s.function) for s in steps] == [
            ("bias", "add_row"),
            ("activation", "relu"),
        ]
        assert all(0 < s.nanoseconds < 10**10 for s in steps)
        np.testing.assert_array_equal(model(X), row_reference(X))


def test_out_is_filled_and_checked(rows: Artifact) -> None:
    with load(rows.folder) as model:
        y = np.empty((24, 16), np.float32)
        assert model(X, out=y) is y
        np.testing.assert_array_equal(y, row_reference(X))
        assert model(X, out=[y]) is y
        frozen = y.copy()
        frozen.flags.writeable = False
        bad = [y[:-1], y.astype(np.float64), np.empty((16, 24), np.float32).T, frozen]
        for out in bad:
            with pytest.raises(DlccError, match="cannot write the result into out") as caught:
                model(X, out=out)
            assert caught.value.code == ExitCode.DATA
        with pytest.raises(DlccError, match="0 arrays in out"):
            model(X, out=[])
        with pytest.raises(DlccError, match='output "y" overlaps input "x"'):
            model(y, out=y)


def test_views_are_copied_and_inputs_left_alone(rows: Artifact) -> None:
    wide = RNG.normal(size=(24, 32)).astype(np.float32)
    odd = np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(24, 16)
    with load(rows.folder) as model:
        for view in (wide[:, ::2], wide[::-1, 16:], np.asfortranarray(X), odd):
            before = view.copy()
            np.testing.assert_array_equal(model(view), row_reference(before))
            np.testing.assert_array_equal(view, before)
        frozen = X.copy()
        frozen.flags.writeable = False
        np.testing.assert_array_equal(model(frozen), row_reference(X))


def test_dlpack_in_and_out(rows: Artifact) -> None:
    class Foreign:
        """Offers DLPack and nothing else."""

        def __dlpack__(self, **options: object) -> object:
            return X.__dlpack__(**options)  # type: ignore[arg-type]

        def __dlpack_device__(self) -> tuple[int, int]:
            return X.__dlpack_device__()

    with load(rows.folder) as model:
        y = model(Foreign())
        np.testing.assert_array_equal(y, row_reference(X))
        np.testing.assert_array_equal(np.from_dlpack(y), row_reference(X))


def test_torch_tensors_in_and_out(rows: Artifact) -> None:
    torch = pytest.importorskip("torch")
    with load(rows.folder) as model:
        result = torch.from_dlpack(model(torch.from_numpy(X)))
        assert torch.equal(result, torch.from_numpy(row_reference(X)))
        with pytest.raises(DlccError, match="detached tensor") as caught:
            model(torch.from_numpy(X).requires_grad_())
        assert caught.value.code == ExitCode.DATA


BAD_CALLS: dict[str, tuple[Callable[[Model], object], str]] = {
    "none": (lambda m: m(), "0 inputs given, 1 needed"),
    "two": (lambda m: m(X, X), "2 inputs given, 1 needed"),
    "dtype": (lambda m: m(X.astype(np.float64)), "dtype float64, float32 needed"),
    "byte order": (lambda m: m(X.astype(">f4")), "dtype >f4, float32 needed"),
    "shape": (lambda m: m(X[:3]), r"shape \(3, 16\), \(24, 16\) needed"),
    "list": (lambda m: m(X.tolist()), "cannot use a list"),
    "unknown": (lambda m: m(z=X), "unknown or repeated input 'z'"),
    "repeated": (lambda m: m(X, x=X), "unknown or repeated input 'x'"),
    "missing": (lambda m: m.run({}), "input 'x' is missing"),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_bad_inputs_are_refused(call: str, rows: Artifact) -> None:
    function, message = BAD_CALLS[call]
    with load(rows.folder) as model, pytest.raises(DlccError, match=message) as caught:
        function(model)
    assert caught.value.code == ExitCode.DATA


def test_closed_models_refuse_to_run(rows: Artifact) -> None:
    model = load(rows.folder)
    model.close()
    model.close()
    with pytest.raises(ValueError, match="closed"):
        model(X)
    with pytest.raises(ValueError, match="closed"), model:
        pass


def test_memory_and_descriptors_are_given_back(rows: Artifact) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    load(rows.folder).close()
    before, threads = descriptors(), len(list(Path("/proc/self/task").iterdir()))
    for _ in range(20):
        load(rows.folder, threads=4)(X)
    gc.collect()
    assert descriptors() == before
    assert len(list(Path("/proc/self/task").iterdir())) == threads
    maps = Path("/proc/self/maps").read_text()
    assert "librows" not in maps
    assert "rows.weights" not in maps


def test_replaced_artifact_is_loaded_anew(kernels: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = row_program(kernels)
    write_artifact(program, out)
    old = load(out)
    tripled = np.tile(np.full(16, 3, np.float32).tobytes(), 1)
    write_artifact(replace(program, weights=bytes(64) + bytes(tripled) + b"\1\2\3"), out)
    with load(out) as new:
        np.testing.assert_array_equal(new(X), np.maximum(X + 3, 0))
        np.testing.assert_array_equal(old(X), row_reference(X))
    old.close()


def test_descriptors_that_are_used_again_name_no_other_library(
    rows: Artifact, kernels: bytes, tmp_path: Path
) -> None:
    program = row_program(kernels)
    tripled = np.full(16, 3, np.float32).tobytes()
    write_artifact(replace(program, weights=bytes(64) + tripled + b"\1\2\3"), tmp_path / "out")
    first, second = load(rows.folder), load(rows.folder)
    first.close()
    with second, load(tmp_path / "out") as other:
        np.testing.assert_array_equal(other(X), np.maximum(X + 3, 0))


def test_forked_children_can_run_and_finish(rows: Artifact) -> None:
    code = f"""
import os, numpy as np
from dlcc.runtime.loader import load
m = load({str(rows.folder)!r}, threads=4)
x = np.ones((24, 16), np.float32)
y = m(x)
child = os.fork()
same = np.array_equal(m(x), y)
m.close()
if child == 0:
    os._exit(0 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


def test_kernel_failure_names_the_layer(kernels: bytes, tmp_path: Path) -> None:
    program = replace(
        row_program(kernels),
        outputs=(floats(8, name="y"),),
        steps=(Step("broken layer", "fail", (Arg("output"),), 8),),
    )
    write_artifact(program, tmp_path / "out")
    for threads in (1, 4):
        with (
            load(tmp_path / "out", threads=threads) as model,
            pytest.raises(DlccError, match=r"step 0 \(broken layer\) returned 7") as caught,
        ):
            model(X)
        assert caught.value.code == ExitCode.INTERNAL


def test_thread_count_is_checked(rows: Artifact) -> None:
    for threads in (-1, 5):
        with pytest.raises(DlccError, match=f"threads is {threads}, .* 1 to 4") as caught:
            load(rows.folder, threads=threads)
        assert caught.value.code == ExitCode.USAGE
        assert "--threads 5" in caught.value.fix


def test_missing_cpu_feature_is_refused_with_words(kernels: bytes, tmp_path: Path) -> None:
    feature = missing_feature()
    write_artifact(replace(row_program(kernels), features=("sse2", feature)), tmp_path / "out")
    with pytest.raises(DlccError, match=f"needs {feature}, which this CPU lacks") as caught:
        load(tmp_path / "out")
    assert caught.value.code == ExitCode.TARGET
    assert caught.value.fix.startswith("compile with --target cpu:")


def test_artifacts_without_shared_library_or_for_other_machines(
    kernels: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_artifact(row_program(kernels), tmp_path / "static", emit=("a",))
    with pytest.raises(DlccError, match="no shared library") as caught:
        load(tmp_path / "static")
    assert caught.value.code == ExitCode.ARTIFACT
    write_artifact(row_program(kernels), tmp_path / "out")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(DlccError, match="for another machine"):
        load(tmp_path / "out")


def _cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def _edit(path: Path, **fields: object) -> None:
    record = json.loads(path.read_text()) | fields
    record["checksum"] = manifest.checksum(record)
    path.write_bytes(manifest.dump_json(record))


def _larger(path: Path) -> object:
    """The manifest's inputs, the first of them with twice the rows."""
    inputs = json.loads(path.read_text())["inputs"]
    inputs[0] |= {"shape": [2 * inputs[0]["shape"][0], *inputs[0]["shape"][1:]]}
    inputs[0]["bytes"] *= 2
    return inputs


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "there is no manifest"),
    "manifest cut": (lambda d: _cut(d / "manifest.json", 200), "is not JSON"),
    "manifest empty": (lambda d: _cut(d / "manifest.json", 0), "is not JSON"),
    "manifest binary": (lambda d: (d / "manifest.json").write_bytes(b"\xff\0"), "is not JSON"),
    "manifest nested": (
        lambda d: (d / "manifest.json").write_text("[" * 100_000),
        "is not JSON",
    ),
    "manifest of others": (lambda d: (d / "manifest.json").write_text("[]"), "of something else"),
    "manifest changed": (
        lambda d: (d / "manifest.json").write_text(
            (d / "manifest.json").read_text().replace('"arena_bytes": 1664', '"arena_bytes": 64')
        ),
        "checksum does not fit",
    ),
    "inputs changed": (
        lambda d: _edit(d / "manifest.json", inputs=_larger(d / "manifest.json")),
        "other inputs or outputs than the library",
    ),
    "newer version": (lambda d: _edit(d / "manifest.json", version=99), "version is 99"),
    "weights cut": (lambda d: _cut(d / "rows.weights", 100), "has 100 bytes"),
    "weights longer": (
        lambda d: (d / "rows.weights").write_bytes((d / "rows.weights").read_bytes() + b"x"),
        "longer than it was",
    ),
    "weights changed": (lambda d: _flip(d / "rows.weights", 130), "rows.weights is corrupt"),
    "weights missing": (lambda d: (d / "rows.weights").unlink(), "rows.weights is missing"),
    "library cut": (lambda d: _cut(d / "librows.so", 5000), "librows.so is truncated"),
    "library changed": (lambda d: _flip(d / "librows.so", 4000), "librows.so is corrupt"),
    "library a folder": (
        lambda d: ((d / "librows.so").unlink(), (d / "librows.so").mkdir()),
        "cannot read librows.so",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_artifacts_are_refused(damage: str, copied: Path) -> None:
    function, message = DAMAGE[damage]
    function(copied)
    with pytest.raises(DlccError, match=message) as caught:
        load(copied)
    assert caught.value.code == ExitCode.ARTIFACT
    assert caught.value.fix


def test_any_changed_byte_is_refused(copied: Path) -> None:
    rng = np.random.default_rng(5)
    for path in sorted(copied.iterdir()):
        if path.suffix in (".a", ".o"):
            continue
        content = path.read_bytes()
        for at in [0, len(content) - 1, *rng.integers(0, len(content), 12)]:
            changed = bytearray(content)
            changed[at] ^= 1 << rng.integers(0, 5)  # keeps blanks from becoming other blanks
            path.write_bytes(changed)
            with pytest.raises(DlccError) as caught:
                load(copied)
            assert caught.value.code == ExitCode.ARTIFACT
            path.write_bytes(content)
    load(copied).close()


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DlccError, match="no such folder"):
        load(tmp_path / "absent")


def _replace_file(folder: Path, name: str, content: bytes) -> None:
    """Changes a file and makes the manifest agree, so that only the library can object."""
    (folder / name).write_bytes(content)
    record = json.loads((folder / "manifest.json").read_text())
    files = record["files"] | {name: manifest.file_record(content)}
    _edit(folder / "manifest.json", files=files)


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (0, "not a dlcc weights file"),
        (8, "weights format 65"),
        (12, "header contradicts"),
        (16, "header contradicts|hash"),
        (24, "header contradicts"),
        (32, "hash of its content"),
        (40, "another network"),
        (50, "header contradicts"),
        (70, "hash of its content"),
        (255, "hash of its content"),
    ],
)
def test_library_checks_the_weights_itself(offset: int, message: str, copied: Path) -> None:
    content = bytearray((copied / "rows.weights").read_bytes())
    content[offset] ^= 0x40
    if offset == 16:  # a content longer than the file
        content[16:24] = b"\xff" * 8
    _replace_file(copied, "rows.weights", bytes(content))
    with pytest.raises(DlccError, match=message) as caught:
        load(copied)
    assert caught.value.code == ExitCode.ARTIFACT


def test_library_that_is_none_or_anothers_is_refused(
    copied: Path, kernels: bytes, tmp_path: Path
) -> None:
    _replace_file(copied, "librows.so", b"not a library")
    with pytest.raises(DlccError, match="library cannot be loaded") as caught:
        load(copied)
    assert caught.value.code == ExitCode.ARTIFACT
    write_artifact(row_program(kernels, threads=3), tmp_path / "rows3")
    _replace_file(copied, "librows.so", (tmp_path / "rows3" / "librows.so").read_bytes())
    with pytest.raises(DlccError, match="another network or compilation"):
        load(copied)
    write_artifact(row_program(kernels, name="other"), tmp_path / "other")
    _replace_file(copied, "librows.so", (tmp_path / "other" / "libother.so").read_bytes())
    with pytest.raises(DlccError, match="rows_info"):
        load(copied)


def test_parallel_loading(rows: Artifact) -> None:
    def once(_: int) -> bool:
        with load(rows.folder, threads=2) as model:
            return bool(np.array_equal(model(X), row_reference(X)))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(once, range(40)))


def cpus_of_threads() -> dict[str, str]:
    """Thread id to the CPUs it may run on, for this process."""
    found = {}
    gc.collect()  # ends the threads of models that nobody has any more
    for task in Path("/proc/self/task").iterdir():
        status = (task / "status").read_text()
        found[task.name] = next(
            line.split()[1] for line in status.splitlines() if line.startswith("Cpus_allowed_list")
        )
    return found


def test_pinned_workers_have_a_cpu_each_and_the_caller_keeps_its_own(rows: Artifact) -> None:
    cpus = len(os.sched_getaffinity(0))
    before = cpus_of_threads()
    with load(rows.folder, threads=min(cpus, 4), pin=True) as model:
        after = cpus_of_threads()
        workers = [after[thread] for thread in after.keys() - before.keys()]
        assert len(workers) == model.threads - 1
        assert all(cpu.isdigit() for cpu in workers)
        assert len(set(workers)) == len(workers)
        caller = str(threading.get_native_id())
        assert after[caller] == before[caller]
        np.testing.assert_array_equal(model(X), row_reference(X))


def test_pinning_more_threads_than_cpus_is_refused(rows: Artifact) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with pytest.raises(DlccError, match="cannot pin 2 threads") as caught:
            load(rows.folder, threads=2, pin=True)
        with load(rows.folder, threads=1, pin=True) as model:
            np.testing.assert_array_equal(model(X), row_reference(X))
    finally:
        os.sched_setaffinity(0, allowed)
    assert caught.value.code == ExitCode.USAGE


def test_workers_are_pinned_where_the_caller_says(rows: Artifact) -> None:
    with load(rows.folder, threads=2) as model:
        pin = model._library._pin
        cpu = max(os.sched_getaffinity(0))
        known = cpus_of_threads()
        assert pin(model._library.instance(0), (ctypes.c_int * 1)(cpu)) == 0
        changed = [c for thread, c in cpus_of_threads().items() if c != known[thread]]
        assert changed in ([str(cpu)], [])  # none where there is one CPU
        assert str(cpu) in cpus_of_threads().values()
        pinned = cpus_of_threads()
        for bad in (-1, 1 << 20):
            assert pin(model._library.instance(0), (ctypes.c_int * 1)(bad)) == 1
        assert cpus_of_threads() == pinned
        assert pin(None, None) == 1
