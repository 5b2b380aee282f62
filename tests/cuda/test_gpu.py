"""On a real GPU: ``make test-gpu``. What the emulator's tests check, and that torch is served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlcc
from dlcc.artifact import write_artifact
from dlcc.cuda.architecture import ARCHITECTURES
from dlcc.cuda.driver import compute_capability
from dlcc.runtime.device import DeviceArray
from dlcc.runtime.loader import Model
from tests.cuda.compressed import COMPRESSED, Compressed, large_products
from tests.cuda.programs import BIAS, rows_program, rows_reference, some_rows, two_shapes
from tests.cuda.test_grid_attention import transformer
from tests.test_end_to_end import LARGE, SMALL, check, small_net

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="session")
def architecture() -> str:
    """The newest architecture whose code the first GPU runs."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        if "dlcc-cuda-" in maps.read():
            pytest.skip("this process has loaded the emulated driver: run make test-gpu")
    capability = compute_capability()
    if capability is None:
        pytest.skip("there is no NVIDIA GPU, or no driver for it")
    fitting = [a for a in ARCHITECTURES.values() if a.runs(capability)]
    if not fitting:
        pytest.skip(f"no target is for sm_{capability}")
    return str(fitting[-1])


@pytest.fixture
def model(architecture: str, tmp_path: Path) -> Iterator[Model]:
    artifact = write_artifact(rows_program(architecture), tmp_path / "rows")
    with dlcc.load(artifact.folder) as made:
        yield made


def test_host_memory(model: Model) -> None:
    for seed in range(5):
        x = some_rows(seed)
        assert np.array_equal(model(x), rows_reference(x))
    times = model.profile(some_rows())
    assert [t.layer for t in times] == ["bias", "turn", "fold"]
    assert all(0 < t.nanoseconds < 1e9 for t in times)


def test_device_memory(model: Model) -> None:
    x, out = DeviceArray.copy_of(some_rows()), DeviceArray.copy_of(some_rows(1))
    assert np.array_equal(model(x).numpy(), rows_reference(some_rows()))
    for _ in range(3):
        assert model(x, out=out) is out
        assert np.array_equal(out.numpy(), rows_reference(some_rows()))
    chained = model(model(x))
    assert np.array_equal(chained.numpy(), rows_reference(rows_reference(some_rows())))
    assert np.array_equal(model(some_rows(2)), rows_reference(some_rows(2)))


def test_shape_profiles(architecture: str, tmp_path: Path) -> None:
    artifact = write_artifact(two_shapes(architecture), tmp_path / "out")
    with dlcc.load(artifact.folder) as model:
        for rows in (1, 4, 1):
            x = some_rows(rows)[:rows]
            assert np.array_equal(model(x), x + BIAS)
            assert np.array_equal(model(DeviceArray.copy_of(x)).numpy(), x + BIAS)


def test_a_wrong_address_is_refused(model: Model) -> None:
    library: Any = model._library
    host = [np.zeros(512, np.float32) for _ in range(2)]
    places = [type(model._input_pointers)(array.ctypes.data) for array in host]
    status = library.run_device(library.instance(0), *places, None)
    assert status == 1
    assert 'input "x" is not in the memory of device 0' in str(library.failure(status))


def test_torch(model: Model) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    x = some_rows()
    tensor = torch.from_numpy(x).cuda()
    y = torch.from_dlpack(model(tensor))
    assert y.is_cuda
    assert np.array_equal(y.cpu().numpy(), rows_reference(x))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        out = torch.empty_like(tensor)
        for _ in range(20):  # each needs what the one before has made
            model.launch(tensor, stream=stream.cuda_stream, out=out)
            tensor = out.clone()
    wanted = x
    for _ in range(20):
        wanted = rows_reference(wanted)
    assert np.array_equal(out.cpu().numpy(), wanted)


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_small_net(architecture: str, tmp_path: Path, bits: int) -> None:
    check(small_net(), tmp_path / "out", bits=bits, target=f"cuda:{architecture}")


@pytest.mark.parametrize("made", COMPRESSED, ids=lambda made: made.passes)
def test_compressed(architecture: str, tmp_path: Path, made: Compressed) -> None:
    made.check(f"cuda:{architecture}", tmp_path / "out")


def test_attention(architecture: str, tmp_path: Path) -> None:
    graph = dlcc.import_onnx(transformer(70, 2, 32))
    check(graph, tmp_path / "out", bits=16, target=f"cuda:{architecture}")


@pytest.mark.parametrize("bits", [16, 8])
def test_large_products(architecture: str, tmp_path: Path, bits: int) -> None:
    """On Hopper these are products of warpgroups."""
    check(large_products(), tmp_path / "out", bits=bits, target=f"cuda:{architecture}")


@pytest.mark.data
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
@pytest.mark.parametrize("bits", [32, 16, 8])
def test_models(architecture: str, models_dir: Path, tmp_path: Path, name: str, bits: int) -> None:
    model = models_dir / f"{name}.onnx"
    check(model, tmp_path / "out", bits=bits, target=f"cuda:{architecture}")
