"""The lowered network: what the lowering hands to the artifact writer.

A :class:`Program` is a list of steps, one after the other but for the :class:`Jump` of a loop. A
:class:`Step` is one compiled kernel function called on fixed places in four memories: the caller's
inputs and outputs, one arena that all intermediate values share, and the read-only weights. A
:class:`FusedStep` is several of them, run band by band. Nothing here knows about graphs, TVM or
files.

Kernel ABI (plain C, default calling convention)::

    int32_t kernel(void *arg0, ..., void *argN, int32_t begin, int32_t end)

A kernel computes its work items ``[begin, end)``; items are independent, so any split over threads
gives the same bytes. It returns 0. Each ``arg`` is an address aligned as the program says, apart
from the caller's inputs and outputs, which need only the alignment of their dtype.

Programs for a GPU (:attr:`Program.device`) have kernels without the last two parameters, which
their :class:`Launch` replaces; all four memories are the device's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal

ArgKind = Literal["input", "output", "arena", "weights", "window"]

ALIGNMENT = 64
"""Bytes: alignment of every arena and weights offset, where the program says nothing else."""


@dataclass(frozen=True)
class Arg:
    """One pointer argument of a kernel call.

    ``index`` selects the input or output (kinds "input", "output"); ``offset`` is in bytes from the
    start of that memory. ``per_thread`` > 0 means: the address is ``offset + thread * per_thread``,
    a scratch area of that many bytes for each thread (kind "arena" only).
    """

    kind: ArgKind
    offset: int = 0
    index: int = 0
    per_thread: int = 0


@dataclass(frozen=True)
class Launch:
    """How a GPU runs a kernel: blocks of the grid, threads of a block, as (x, y, z).

    ``shared_bytes``: shared memory that is asked for at the launch, beside what the kernel declares
    itself.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0


@dataclass(frozen=True)
class Jump:
    """Where a loop's trips begin or end: after its step the run goes on at step ``to``.

    It does if the byte at ``condition`` is 1 (``when``) or 0 (not ``when``), else at the next step.
    """

    condition: Arg
    to: int
    when: bool


@dataclass(frozen=True)
class Step:
    """One kernel call: ``work_items`` independent items, split over at most ``max_threads``."""

    layer: str
    function: str
    args: tuple[Arg, ...]
    work_items: int
    max_threads: int = 0
    """0: as many as the instance has; else more threads than that would make it slower."""
    launch: Launch | None = None
    """For kernels of a GPU, and only for these."""
    jump: Jump | None = None
    """None: the next step follows."""
    after: tuple[int, ...] = ()
    """Of a GPU: numbers of the steps that have to be done before; others may run beside it."""

    @property
    def calls(self) -> tuple[Step, ...]:
        """The kernel calls it is made of: itself."""
        return (self,)


@dataclass(frozen=True)
class Member:
    """One kernel of a :class:`FusedStep`.

    In band ``b`` it computes the items up to ``until[b]``: from ``first[b]`` if the band is the
    first one of a thread's range (what earlier bands made lies in other threads' windows), else
    from ``until[b - 1]``.
    """

    layer: str
    function: str
    args: tuple[Arg, ...]
    first: tuple[int, ...]
    until: tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """Memory of one thread through which a fused step's intermediate value passes.

    During band ``b`` it holds the value's bytes from ``start[b]`` (a multiple of 64, never falling)
    on, at ``arena + offset + thread * per_thread``. Where ``start[b]`` differs from ``start[b -
    1]``, a thread that comes from band ``b - 1`` first moves the ``kept[b]`` bytes from there on to
    the front.
    """

    offset: int
    per_thread: int
    start: tuple[int, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True)
class FusedStep:
    """Several kernels run band by band, so that what one makes is read while the cache has it.

    A work item is one band of the last member's items. Every thread has a range of bands; the items
    of earlier members that two ranges need are computed by both, into windows of their own.
    """

    members: tuple[Member, ...]
    windows: tuple[Window, ...]
    work_items: int
    max_threads: int = 0

    @property
    def layer(self) -> str:
        """Its layers, in order."""
        return " + ".join(dict.fromkeys(m.layer for m in self.members))

    @property
    def function(self) -> str:
        """Its kernels, in order."""
        return " + ".join(m.function for m in self.members)

    @property
    def calls(self) -> tuple[Member, ...]:
        """The kernel calls it is made of."""
        return self.members


@dataclass(frozen=True)
class TensorInfo:
    """A network input or output as the C caller sees it. ``dtype`` is numpy's name for it.

    Where ``scale`` is not None the elements are codes: real = scale * (code - zero_point).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for dim in self.shape:
            count *= dim
        return count


@dataclass(frozen=True)
class WeightEntry:
    """A named span of the weights file: constant ``name`` of ``layer``, as the kernel wants it."""

    layer: str
    name: str
    offset: int
    size: int
    encoding: str
    """Text form of the stored encoding, e.g. ``affine<s8, axis=0>``."""
    width: int = 1
    """Bytes of one element, 1, 2 or 4: what compares elements need not look at their dtype."""


@dataclass(frozen=True)
class FilterTransform:
    """What a constant of transformed 3x3 filters was made from, and how.

    Filter g becomes ``G g G^T`` (Lavin and Gray 2016, section 4.1) in float64, rounded to float32:
    first ``G g``, then that times ``G^T``, each sum of three products from left to right without
    fused multiply-adds. The result is stored as ``[n * n, blocks, channels, lanes]``: output
    channels in blocks of ``lanes``, the last one filled up with zeros.

    Attributes:
        filters: float32[outputs, channels, 3, 3], little-endian.
        outputs: output channels.
        channels: input channels.
        lanes: output channels of a block.
        matrix: G, n rows of 3; numerators fit 8 signed, denominators 8 unsigned bits.
    """

    filters: bytes = field(repr=False)
    outputs: int
    channels: int
    lanes: int
    matrix: tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class Sample:
    """An input, and what the reference computes from it.

    Attributes:
        inputs: bytes of each input, little-endian, in the network's order.
        outputs: bytes of each output.
        tolerances: for each output 0 where every target gives these very bytes; else by how much
            an element may differ, in units of the output's largest magnitude.
        source: where the input is from, as a noun phrase.
    """

    inputs: tuple[bytes, ...] = field(repr=False)
    outputs: tuple[bytes, ...] = field(repr=False)
    tolerances: tuple[float, ...]
    source: str


@dataclass(frozen=True)
class KernelSource:
    """A kernel as C99 that computes all items of its steps at once.

    What it calls is defined in ``dlcc/runtime/c/bare/arithmetic.c``.

    Attributes:
        types: C types that its parameters point to, ``const`` where they are only read.
        names: of its parameters.
        body: what stands between the braces of the function, indented.
        apart: what its parameters point to never overlaps.
    """

    types: tuple[str, ...]
    names: tuple[str, ...]
    body: str = field(repr=False)
    apart: bool = True

    @property
    def parameters(self) -> list[str]:
        """The declarations of its parameters."""
        pairs = zip(self.types, self.names, strict=True)
        return [f"{kind} *{'restrict ' if self.apart else ''}{name}" for kind, name in pairs]


@dataclass(frozen=True)
class Program:
    """A network ready to be linked.

    ``object_code`` is a relocatable object for ``triple`` that defines every step's functions.
    ``features`` are the CPU features the code needs (names as in Linux's /proc/cpuinfo, e.g.
    ``avx512_vnni``, ``amx_int8``); the library refuses to start where one is missing.

    Where ``device`` is "cuda", ``object_code`` is a cubin, ``features`` is its architecture
    (``sm_80``), and ``triple`` is that of the host, which launches the kernels.
    """

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    steps: tuple[Step | FusedStep, ...]
    arena_bytes: int
    weights: bytes = field(repr=False)
    weight_entries: tuple[WeightEntry, ...]
    object_code: bytes = field(repr=False)
    triple: str
    features: tuple[str, ...]
    threads: int = 1
    """Upper bound on threads: per-thread scratch areas are planned for so many."""
    variant: str = ""
    """What it is called beside others for other CPUs: the level of the target."""
    better: tuple[Program, ...] = ()
    """The same network for CPUs with more features, each better than those before it: they share
    interface, arena and weights with this one, and no name of a function. The library runs the best
    that the CPU can."""
    more_shapes: tuple[Program, ...] = ()
    """The same network for other shapes of its inputs: its further shape profiles. Each has as many
    variants as this one, of the same names, features and object code; all share the weights, and
    only shapes differ among their inputs and outputs."""
    alignment: int = ALIGNMENT
    """Bytes: alignment of arena and weights offsets."""
    device: Literal["", "cuda"] = ""
    """What runs the kernels, where it is not the CPU."""
    input_places: tuple[int, ...] = ()
    """Arena offsets where the inputs may stand when the program starts; they are overwritten
    there. Empty: no input may stand in the arena."""
    output_places: tuple[int, ...] = ()
    """Arena offsets where the outputs may be made. Empty: none."""
    transforms: Mapping[int, FilterTransform] = field(default_factory=dict, repr=False)
    """By offset of the constant."""
    sources: Mapping[str, KernelSource] = field(default_factory=dict, repr=False)
    """The kernels as C by the names of their functions, where that was asked for."""
    report: dict[str, object] = field(default_factory=dict, repr=False)
    """Per layer: kernel and why, encodings, bytes, MACs, remarks. Goes to report.json."""

    @property
    def variants(self) -> tuple[Program, ...]:
        """This program and the better ones, the best last."""
        return (self, *self.better)

    @property
    def profiles(self) -> tuple[Program, ...]:
        """Its shape profiles: this program, and those for other shapes."""
        return (self, *self.more_shapes)

    @property
    def schedules(self) -> tuple[Program, ...]:
        """Every variant of every shape profile: those of the first profile, then of the next."""
        return tuple(variant for profile in self.profiles for variant in profile.variants)

    @cached_property
    def constants_read(self) -> frozenset[int]:
        """Offsets of the constants that its steps read."""
        calls = (call for step in self.steps for call in step.calls)
        return frozenset(a.offset for call in calls for a in call.args if a.kind == "weights")
