"""The driver of this machine's GPUs, called by Python."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

_MAJOR: Final = 75
_MINOR: Final = 76
"""Numbers of the attributes in cuda.h."""

_NOT_READY: Final = 600


class DeviceError(Exception):
    """A tensor that cannot be used, or what the driver said."""


class Driver:
    """The functions of the driver, by name."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DeviceError(str(error)) from None
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self("cuInit", 0)

    def __call__(self, name: str, *arguments: object) -> None:
        """Calls a function.

        Raises:
            DeviceError: with the driver's words.
        """
        status = self._library[name](*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise DeviceError(f"{name} failed: {(text.value or b'unknown error').decode()}")

    @contextmanager
    def on(self, ordinal: int) -> Iterator[None]:
        """The calling thread works in the primary context of a device."""
        if ordinal not in self._contexts:
            made = ctypes.c_void_p()
            self("cuDevicePrimaryCtxRetain", ctypes.byref(made), self._device(ordinal))
            self._contexts[ordinal] = made  # for as long as the process lives
        self("cuCtxPushCurrent_v2", self._contexts[ordinal])
        try:
            yield
        finally:
            self("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _device(self, ordinal: int) -> ctypes.c_int:
        device = ctypes.c_int()
        self("cuDeviceGet", ctypes.byref(device), ordinal)
        return device

    def capability(self, ordinal: int) -> int:
        """Ten times the compute capability of a device."""
        device, numbers = self._device(ordinal), []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
            numbers.append(value.value)
        return 10 * numbers[0] + numbers[1]

    def done(self, event: ctypes.c_void_p) -> bool:
        """Whether the work before an event is done, or will never be."""
        return int(self._library.cuEventQuery(event)) != _NOT_READY


@cache
def driver() -> Driver:
    """The driver of this process.

    Raises:
        DeviceError: there is none.
    """
    return Driver()


@cache
def compute_capability() -> int | None:
    """Ten times that of the first GPU, 80 for 8.0; None where there is none or no driver."""
    try:
        return driver().capability(0)
    except DeviceError:
        return None
