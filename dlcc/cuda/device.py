"""The GPU of this machine, asked through its driver."""

from __future__ import annotations

import ctypes
from functools import cache

_MAJOR, _MINOR = 75, 76
"""Numbers of the attributes in cuda.h."""


@cache
def compute_capability() -> tuple[int, int] | None:
    """Major and minor number of the first GPU; None where there is none or no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, numbers = ctypes.c_int(), []
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        numbers.append(value.value)
    return numbers[0], numbers[1]


def runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``architecture`` (``sm_80``) runs on a device of ``capability``."""
    major, minor = divmod(int(architecture.removeprefix("sm_")), 10)
    return capability[0] == major and capability[1] >= minor
