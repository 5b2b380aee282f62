"""The reference runs matrix products on one thread and gives the threads back."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_info

from dlcc.analysis.blas import single_threaded_blas


def threads() -> list[int]:
    assert np.matmul(np.ones((2, 2)), np.ones((2, 2))).sum() == 8  # BLAS is loaded
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_one_thread_inside_and_the_old_number_after():
    before = threads()
    with single_threaded_blas():
        assert set(threads()) <= {1}
    assert threads() == before
