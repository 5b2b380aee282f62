"""What a kernel generator returns: the steps that compute one layer, and what they need.

A generator knows one layer and one CPU; it knows nothing about the graph, the arena or files. The
lowering places the plan's arguments in memory (:class:`dlcc.program.Step`), compiles each distinct
function once and writes the constants to the weights file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dlcc.program import FilterTransform, Launch

ARENA_SLACK = 64
"""Bytes that must be readable after the end of every ``in`` and ``scratch`` buffer.

Integer kernels read whole 4-byte (64-byte on AMX) pieces of a run of activations and multiply what
lies past its end by packed zeros; these bytes are read and never used.
"""

ArgumentKind = Literal["in", "const", "scratch", "thread_scratch", "out"]

KernelArg = tuple[ArgumentKind, int | str]
"""One pointer argument of a step: its kind and which one.

``("in", i)`` is the layer's input ``i``, ``("out", i)`` its output, ``("scratch", k)`` and
``("thread_scratch", k)`` index the plan's lists, ``("const", name)`` is one of its constants.
"""


Spans = np.ndarray
"""Byte spans of one operand by work item: int64 ``[items, 2]``, first byte and end; an item that
touches nothing has an empty span."""


@dataclass(frozen=True)
class Footprint:
    """The bytes that each work item of a step touches, by position of the argument.

    A span covers at least what the item touches. Reads of up to ``ARENA_SLACK`` bytes after a span
    whose values do not matter may be left out; writes may not.
    """

    reads: dict[int, Spans]
    writes: dict[int, Spans]


@dataclass(frozen=True)
class KernelStep:
    """One function call over ``work_items`` independent items.

    Attributes:
        name_key: depends on everything that determines the code and on nothing else, so that equal
            keys mean equal functions; constants' values are never part of it.
        build: makes the PrimFunc.
        args: the pointer arguments, in parameter order.
        seconds: predicted on one thread; 0: the layer's whole prediction. Bounds the threads.
        footprint: tells what each item touches of the arguments that are neither constants nor
            thread scratch; None: unknown, and the step is never interleaved with its neighbours.
        launch: the grid and blocks of a GPU's kernel; None on a CPU.
    """

    name_key: str
    build: Callable[[], Any]
    args: tuple[KernelArg, ...]
    work_items: int
    seconds: float = 0.0
    footprint: Callable[[], Footprint] | None = None
    launch: Launch | None = None


@dataclass(frozen=True)
class Overlap:
    """Where a layer's output may lie over one of its inputs, if nobody reads that any more.

    The output's first byte stands at least ``lead`` bytes (which may be negative) before the
    input's; ``exact``: at the very same place. Counts for a run of all work items in order, on one
    thread.
    """

    lead: int = 0
    exact: bool = False


@dataclass(frozen=True)
class KernelPlan:
    """How one layer is computed: ``steps`` in order, each finished before the next begins.

    Attributes:
        constants: arrays as the functions want them (packed, padded), by name.
        scratch: bytes of each buffer shared by the threads (``ARENA_SLACK`` comes on top).
        thread_scratch: bytes of each buffer that every thread has its own copy of.
        features: CPU features the code needs, named as in Linux's /proc/cpuinfo.
        kernel: short name of the kernel for the report, e.g. ``amx 2x2 tiles``.
        compressed: the weights are read in a form of their compressed encoding, not decoded.
        transforms: constants that are larger than what they were made from, by name.
        overlaps: inputs (by index) that the output may overwrite, and how.
        sum_bits: width of the registers in which integer products are summed; what is proven to fit
            fewer than 32 bits may be, in part.
    """

    steps: tuple[KernelStep, ...]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    scratch: tuple[int, ...] = ()
    thread_scratch: tuple[int, ...] = ()
    features: tuple[str, ...] = ()
    kernel: str = ""
    compressed: bool = False
    transforms: dict[str, FilterTransform] = field(default_factory=dict)
    overlaps: dict[int, Overlap] = field(default_factory=dict)
    sum_bits: int = 32


def name_key(stem: str, *determines: object) -> str:
    """A name ``stem_<hash>`` for code that depends on exactly ``determines``.

    The arguments' ``repr`` is hashed: use frozen dataclasses, tuples, numbers and strings.
    """
    digest = hashlib.sha256(repr(determines).encode()).hexdigest()
    return f"{stem}_{digest[:16]}"
