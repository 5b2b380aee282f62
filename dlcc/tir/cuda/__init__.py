"""Prints TIR functions as CUDA C++, and what builds kernels for a grid of threads.

Functions of work items, as every CPU has them, become kernels of one thread an item
(:func:`on_items`); :class:`GridBuilder` writes kernels whose threads work together.
"""

from dlcc.tir.cuda.grid import GridBuilder
from dlcc.tir.cuda.source import cuda_source, on_items

__all__ = ["GridBuilder", "cuda_source", "on_items"]
