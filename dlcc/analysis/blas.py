"""BLAS on one thread: the same sums on every machine, and no spinning where cores are taken."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np  # noqa: F401  (its BLAS must be loaded before the controller looks for it)
from threadpoolctl import ThreadpoolController


@cache
def _controller() -> Any:
    return ThreadpoolController()


def single_threaded_blas() -> AbstractContextManager[Any]:
    """While it is entered, numpy's matrix products run on the calling thread alone.

    How BLAS splits a product over threads changes the order of its float sums, so calibration
    results would depend on the number of cores. Its threads also spin while they wait, which on a
    busy machine makes small products up to a hundred times slower.
    """
    limit: AbstractContextManager[Any] = _controller().limit(limits=1, user_api="blas")
    return limit
