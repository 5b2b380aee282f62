"""The GPU of this machine, asked through its driver."""

from __future__ import annotations

import ctypes
from functools import cache

_MAJOR, _MINOR = 75, 76
"""Numbers of the attributes in cuda.h."""


@cache
def compute_capability() -> int | None:
    """Ten times that of the first GPU, 80 for 8.0; None where there is none or no driver."""
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
    return 10 * numbers[0] + numbers[1]
