"""Tensors in device memory: DLPack, streams, lifetimes, on the emulated driver."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import dlcc
import dlcc.runtime.device as device
from dlcc.artifact import Artifact, write_artifact
from dlcc.cuda.driver import driver
from dlcc.errors import DlccError, ExitCode
from dlcc.runtime.device import DeviceArray, Event
from dlcc.runtime.loader import Model
from tests.cuda.emulator import Emulator
from tests.cuda.programs import BIAS, COLUMNS, ROWS, rows_reference, some_rows, two_shapes


@pytest.fixture
def model(rows: Artifact, emulator: Emulator) -> Iterator[Model]:
    with dlcc.load(rows.folder) as made:
        yield made


def new_stream() -> int:
    made = ctypes.c_void_p()
    with driver().on(0):
        driver()("cuStreamCreate", ctypes.byref(made), 1)
    return made.value or 0


class Foreign:
    """A tensor of another framework: what its producer has under way writes it late."""

    def __init__(self, values: np.ndarray, late_on: int) -> None:
        self.array = DeviceArray.copy_of(np.zeros_like(values))
        self._values = np.ascontiguousarray(values)
        with driver().on(0):
            place, size = ctypes.c_uint64(self.array.address), ctypes.c_size_t(values.nbytes)
            source = ctypes.c_void_p(self._values.ctypes.data)
            driver()("cuMemcpyHtoDAsync_v2", place, source, size, ctypes.c_void_p(late_on))
        self.array.written_by(Event(0, late_on))
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream: int | None = None) -> object:
        self.streams.append(stream)
        return self.array.__dlpack__(stream=stream)


def test_inputs_of_others_are_waited_for(model: Model) -> None:
    x = some_rows()
    late, mine = new_stream(), new_stream()
    tensor = Foreign(x, late)
    y = model.launch(tensor, stream=mine)
    assert tensor.streams == [mine]
    assert isinstance(y, DeviceArray)
    assert (y.shape, y.dtype.name, y.device) == ((ROWS, COLUMNS), "float32", 0)
    assert np.array_equal(y.numpy(), rows_reference(x))


def test_default_stream_is_told_as_dlpack_has_it(model: Model) -> None:
    tensor = Foreign(some_rows(), 0)
    y = model(tensor)
    assert tensor.streams == [1]
    assert np.array_equal(y.numpy(), rows_reference(some_rows()))


def test_an_output_is_an_input(model: Model, rows: Artifact) -> None:
    with dlcc.load(rows.folder) as second:
        x = some_rows()
        y = second(model(DeviceArray.copy_of(x)))
        assert np.array_equal(y.numpy(), rows_reference(rows_reference(x)))


def test_runs_of_an_instance_follow_one_another(model: Model) -> None:
    """They share the arena: on three streams, and with a run on the host's memory in between."""
    xs = [some_rows(seed) for seed in range(4)]
    streams = [new_stream() for _ in range(3)]
    ys = [model.launch(Foreign(x, s), stream=s) for x, s in zip(xs[:3], streams, strict=True)]
    assert np.array_equal(model(xs[3]), rows_reference(xs[3]))
    for x, y in zip(xs, ys, strict=False):
        assert np.array_equal(y.numpy(), rows_reference(x))
    assert len(model.profile(xs[0])) == 3


def test_the_graph_is_changed_only_for_other_addresses(model: Model, emulator: Emulator) -> None:
    x, out = DeviceArray.copy_of(some_rows()), DeviceArray.copy_of(some_rows(1))
    counted = "cuGraphExecKernelNodeSetParams_v2"
    assert model(x, out=out) is out
    before = emulator.calls(counted)
    model(x, out=out)
    assert emulator.calls(counted) == before
    other = DeviceArray.copy_of(some_rows(2))
    model(other, out=out)
    assert emulator.calls(counted) == before + 1  # the one step that reads the input
    assert np.array_equal(out.numpy(), rows_reference(some_rows(2)))


def test_unaligned_tensors_are_copied(model: Model, emulator: Emulator) -> None:
    class Shifted(Foreign):
        def __init__(self, values: np.ndarray) -> None:
            flat = np.concatenate(
                [np.zeros(1, np.float32), values.ravel(), np.zeros(1, np.float32)]
            )
            self.array = DeviceArray.copy_of(flat)
            self.array.address += 4
            self.array.shape = values.shape
            self.streams = []

    x, out = Shifted(some_rows()), Shifted(some_rows(1))
    before = emulator.calls("cuMemcpyDtoDAsync_v2")
    model(x, out=out)
    assert emulator.calls("cuMemcpyDtoDAsync_v2") == before + 2
    assert np.array_equal(out.array.numpy(), rows_reference(some_rows()))


def test_memory_is_given_back(model: Model, emulator: Emulator) -> None:
    gc.collect()
    before = emulator.allocations
    x = DeviceArray.copy_of(some_rows())
    y = model(x)
    capsule = y.__dlpack__()
    del x, y
    gc.collect()
    assert emulator.allocations > before  # the capsule holds the output, the run its input
    del capsule
    model.close()
    gc.collect()
    assert emulator.allocations <= before


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (some_rows().astype(np.float64), "its elements are not float32"),
        (some_rows()[:2], r"shape \(2, 128\), \(4, 128\) needed"),
    ],
)
def test_tensors_that_do_not_fit(model: Model, values: np.ndarray, text: str) -> None:
    with pytest.raises(DlccError, match=text) as caught:
        model(DeviceArray.copy_of(values))
    assert caught.value.code == ExitCode.DATA


def test_tensors_that_are_not_dense(model: Model) -> None:
    x = DeviceArray.copy_of(some_rows())

    capsule = x.__dlpack__()
    tensor = device._Tensor.from_address(device._pointer(capsule, b"dltensor"))
    tensor.strides[0] = 4 * COLUMNS

    class Capsule:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, *, stream: int | None = None) -> object:
            return capsule

    with pytest.raises(DlccError, match="not stored densely"):
        model(Capsule())


def test_two_memories_are_refused(model: Model) -> None:
    x = DeviceArray.copy_of(some_rows())
    with pytest.raises(DlccError, match="it is in the host's memory, this instance runs on GPU 0"):
        model(x, out=np.empty((ROWS, COLUMNS), np.float32))
    with pytest.raises(DlccError, match="2 inputs given, 1 needed"):
        model(x, x)


def test_another_device(rows: Artifact, emulator: Emulator) -> None:
    with emulator.devices("8.0,9.0"):
        with dlcc.load(rows.folder, device=1) as model:
            assert (model.device, model.variant) == (1, "sm_90")
            y = model(DeviceArray.copy_of(some_rows(), device=1))
            assert np.array_equal(y.numpy(), rows_reference(some_rows()))
            with pytest.raises(DlccError, match="it is on GPU 0, this instance runs on GPU 1"):
                model(DeviceArray.copy_of(some_rows()))
        with pytest.raises(DlccError, match="device is 2, the driver has 0 to 1") as caught:
            dlcc.load(rows.folder, device=2)
        assert caught.value.code == ExitCode.USAGE


def test_shape_profiles(emulator: Emulator, tmp_path: Path) -> None:
    artifact = write_artifact(two_shapes(), tmp_path / "out")
    with dlcc.load(artifact.folder) as model:
        for rows in (1, 4, 1):
            x = some_rows(rows)[:rows]
            assert np.array_equal(model(x), x + BIAS)
            assert np.array_equal(model(DeviceArray.copy_of(x)).numpy(), x + BIAS)
        with pytest.raises(DlccError, match="no shape profile is for"):
            model(DeviceArray.copy_of(some_rows()[:2]))
