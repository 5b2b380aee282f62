"""Tensors in a GPU's memory: DLPack in both directions.

Streams are handles as integers (torch: ``torch.cuda.current_stream().cuda_stream``); 0 is the
legacy default stream.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from dlcc.cuda.driver import DeviceError, driver

CUDA: Final = 2
"""DLPack's number of the memory of an NVIDIA GPU (kDLCUDA)."""

_MANAGED: Final = 13
_NO_TIMING: Final = 2
_LEGACY: Final = 1
_CAPSULE: Final = b"dltensor"
_KINDS: Final = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT: Final = 4


class Event:
    """A place in a stream's work.

    Args:
        ordinal: of the device.
        stream: after what is on it now.
    """

    def __init__(self, ordinal: int, stream: int) -> None:
        self.handle = ctypes.c_void_p()
        self._ordinal = ordinal
        with driver().on(ordinal):
            driver()("cuEventCreate", ctypes.byref(self.handle), _NO_TIMING)
            driver()("cuEventRecord", self.handle, ctypes.c_void_p(stream))
        weakref.finalize(self, _release, "cuEventDestroy_v2", ordinal, self.handle).atexit = False

    @property
    def done(self) -> bool:
        """Whether that work is done."""
        with driver().on(self._ordinal):
            return driver().done(self.handle)

    def hold(self, stream: int) -> None:
        """Makes a stream wait for it."""
        with driver().on(self._ordinal):
            driver()("cuStreamWaitEvent", ctypes.c_void_p(stream), self.handle, 0)

    def wait(self) -> None:
        """Makes the calling thread wait for it."""
        with driver().on(self._ordinal):
            driver()("cuEventSynchronize", self.handle)


def _release(function: str, ordinal: int, handle: object) -> None:
    """Errors are those of a driver that has gone before, or of work that failed long since."""
    try:
        with driver().on(ordinal):
            driver()(function, handle)
    except DeviceError:
        pass


class _Tensor(ctypes.Structure):
    """``DLManagedTensor`` of dlpack.h, before its versioned successor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# of a capsule that nobody refers to any more: not as an object, which would be counted again
_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

_exported: dict[int, tuple[object, ...]] = {}
"""What has to live as long as an exported tensor, by its address."""


def _delete(tensor: int) -> None:
    _exported.pop(tensor, None)


def _drop(capsule: int) -> None:
    """The destructor of a capsule: who has taken its tensor deletes it."""
    if _valid(capsule, _CAPSULE):
        _delete(_dying_pointer(capsule, _CAPSULE))


_deleter, _destructor = _DELETER(_delete), _DELETER(_drop)


def _type_of(dtype: np.dtype[Any]) -> tuple[int, int]:
    """DLPack's code and bits of a type.

    Raises:
        DeviceError: it has none that all of its users know.
    """
    if dtype.name == "bfloat16":
        return _BFLOAT, 16
    if dtype.kind not in _KINDS:
        raise DeviceError(f"{dtype.name} has no type in DLPack")
    return _KINDS[dtype.kind], 8 * dtype.itemsize


def device_of(value: object) -> int | None:
    """The GPU that holds an object with DLPack; None for everything else."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack_device__"):
        return None
    kind, ordinal = value.__dlpack_device__()
    return int(ordinal) if kind in (CUDA, _MANAGED) else None


class Borrowed:
    """A tensor of somebody else's, usable on a stream while this lives.

    Attributes:
        shape: of the tensor.
        address: of its first element.

    Args:
        value: an object with DLPack on a GPU.
        dtype: what its elements have to be.
        stream: where it will be used; its producer makes that wait for what it has under way.

    Raises:
        DeviceError: it is not what it has to be, or not stored densely.
    """

    def __init__(self, value: Any, dtype: np.dtype[Any], stream: int) -> None:
        try:
            self._capsule = value.__dlpack__(stream=stream or _LEGACY)
            tensor = _Tensor.from_address(_pointer(self._capsule, _CAPSULE))
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise DeviceError(str(error).partition("\n")[0] or type(error).__name__) from error
        self.shape = tuple(int(size) for size in tensor.shape[: tensor.ndim])
        if (tensor.code, tensor.bits, tensor.lanes) != (*_type_of(dtype), 1):
            raise DeviceError(f"its elements are not {dtype.name}")
        if tensor.strides and not _dense(self.shape, tensor.strides[: tensor.ndim]):
            raise DeviceError("it is not stored densely, the last dimension fastest")
        self.address = (tensor.data or 0) + tensor.byte_offset


def _dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return 0 in shape
        step *= size
    return True


class DeviceArray:
    """A tensor in a GPU's memory, which it owns: ``torch.from_dlpack(array)`` shares it.

    Attributes:
        dtype: of its elements.
        shape: elements lie densely, the last dimension fastest.
        device: number of the GPU.
        address: of the first element.
    """

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], device: int) -> None:
        self.dtype, self.shape, self.device = dtype, shape, device
        self._ready: Event | None = None
        made = ctypes.c_uint64()
        with driver().on(device):
            driver()("cuMemAlloc_v2", ctypes.byref(made), ctypes.c_size_t(max(self.nbytes, 1)))
        self.address = made.value
        # freeing waits for the work of all streams, so none can still use the memory
        weakref.finalize(self, _release, "cuMemFree_v2", device, made).atexit = False

    @classmethod
    def copy_of(cls, array: NDArray[Any], device: int = 0) -> DeviceArray:
        """A copy of a numpy array."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        made = cls(array.dtype, array.shape, device)
        if made.nbytes:
            with driver().on(device):
                source = ctypes.c_void_p(array.ctypes.data)
                where = ctypes.c_uint64(made.address)
                size = ctypes.c_size_t(made.nbytes)
                driver()("cuMemcpyHtoDAsync_v2", where, source, size, None)
                driver()("cuStreamSynchronize", None)
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def written_by(self, event: Event) -> None:
        """Says when its elements will be there."""
        self._ready = event

    def numpy(self) -> NDArray[Any]:
        """A copy in the host's memory; waits for the elements."""
        made = np.empty(self.shape, self.dtype)
        if self._ready is not None:
            self._ready.wait()
        if made.nbytes:
            with driver().on(self.device):
                target = ctypes.c_void_p(made.ctypes.data)
                where, size = ctypes.c_uint64(self.address), ctypes.c_size_t(self.nbytes)
                driver()("cuMemcpyDtoHAsync_v2", target, where, size, None)
                driver()("cuStreamSynchronize", None)
        return made

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A capsule for a consumer that will use ``stream`` (None: the default one, -1: any)."""
        del max_version  # an old capsule is an answer to every version
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("the array cannot be copied, only shared where it is")
        if self._ready is not None and stream != -1:
            self._ready.hold(_LEGACY if stream is None else stream)
        code, bits = _type_of(self.dtype)
        steps = [math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        shape, strides = ((ctypes.c_int64 * max(len(v), 1))(*v) for v in (self.shape, steps))
        numbers = ctypes.POINTER(ctypes.c_int64)
        tensor = _Tensor(
            self.address, CUDA, self.device, len(self.shape), code, bits, 1,
            ctypes.cast(shape, numbers), ctypes.cast(strides, numbers), 0, None,
            ctypes.cast(_deleter, ctypes.c_void_p),
        )  # fmt: skip
        place = ctypes.addressof(tensor)
        _exported[place] = (self, shape, strides, tensor)
        return cast(object, _new(place, _CAPSULE, ctypes.cast(_destructor, ctypes.c_void_p)))

    def __repr__(self) -> str:
        return f"<{self.dtype.name}{list(self.shape)} on GPU {self.device}>"
