"""What a pass is: one frozen dataclass in one file, whose typed fields are its options.

A pass rewrites a graph in place and says what it did. Its docstring opens with one summary line
and then shows the IR before and after; :func:`describe` turns it and the fields into help text.

::

    @dataclass(frozen=True)
    class RemoveNoise(Pass):
        \"\"\"Set weights smaller than a threshold to zero.\"\"\"

        name: ClassVar[str] = "remove-noise"
        lossy: ClassVar[bool] = True

        threshold: float = option(1e-6, "largest |weight| to drop", minimum=0.0)

        def run(self, graph: Graph, context: PassContext) -> PassResult: ...
"""

from __future__ import annotations

import inspect
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Literal

import numpy as np

from dlcc.analysis.certificates import Assignment
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph, Node
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from passes.options import Option, option, options_of

Batch = Mapping[str, Array]
"""Arrays by input name: real values in the logical dtype, or codes where an input is quantised."""

Statistic = int | float | str

LayerCost = Callable[[Node], float]
"""Predicted seconds of a node on one thread. Only the node's op, attributes and types count (and
the pattern of a sparse constant), so that a node may be asked about that is in no network."""

NOMINAL_MACS_PER_SECOND = 1e11
"""Multiply-accumulates of the nominal machine that stands in where no target is known."""

NOMINAL_BYTES_PER_SECOND = 2e10
"""Bytes of operands and results that the nominal machine moves."""

RemarkKind = Literal["applied", "refused", "note"]

_REGISTRY: dict[str, type[Pass]] = {}


class Stage(IntEnum):
    """When a pass runs beside others, where a recipe and not a pipeline says what is done."""

    EXACT = 0
    """It changes no output."""
    CHANNELS = 1
    """It makes layers smaller."""
    FACTORS = 2
    """It puts several layers in the place of one."""
    ZEROS = 3
    """It drops single weights."""
    WEIGHTS = 4
    """It stores weights in another way."""
    SIGNS = 5
    """It lets layers with binary weights read signs."""
    CODES = 6
    """It turns the network into integers."""
    REST = 7
    """It works on what stayed in float."""


@dataclass(frozen=True)
class Remark:
    """One thing a pass did, refused to do, or found.

    Attributes:
        pass_name: kebab-case name of the pass.
        loc: the node's ``loc`` (or a value's name).
        kind: "applied", "refused" (the message is the reason) or "note".
        message: one sentence without a full stop.
    """

    pass_name: str
    loc: str
    kind: RemarkKind
    message: str

    def __str__(self) -> str:
        return f"{self.pass_name}: {self.kind}: {self.loc or '<graph>'}: {self.message}"


@dataclass(frozen=True)
class Progress:
    """How far a pipeline is.

    Attributes:
        pass_name: the pass that runs.
        index: its place in the pipeline, from 0.
        count: number of passes.
        fraction: how much of this pass is done, 0 to 1.
        message: what it is doing ("" at its start and end).
    """

    pass_name: str
    index: int
    count: int
    fraction: float
    message: str = ""


@dataclass
class PassContext:
    """What passes may use beyond the graph; one for a whole pipeline.

    Attributes:
        calibration: makes a fresh iterator over batches of typical inputs (the leading axis of
            every array is the network's own batch size), or None where the user gave no data.
        labels: gives the class of each calibration sample, int64, where the data has them.
        verify_inputs: batches on which outputs are compared before and after each pass.
        target: facts of the target that passes may depend on (e.g. ``accumulator_bits``).
        cost: predicted time of a layer as the whole pipeline will leave it (in 8 bits where a later
            pass quantises), by the kernel table of the target; None where there is no target.
        seed: seed of every random choice.
        progress: called as passes advance.
        remarks: every remark so far; passes read those of earlier passes here.
        channel_moments: ``loc`` of a layer -> mean and deviation of each output channel on the
            training data, as its batch norm knew them before it was folded.
        assigned: name of a layer's result -> the accumulator for which a pass chose its widths.
    """

    calibration: Callable[[], Iterator[Batch]] | None = None
    labels: Callable[[], Array] | None = None
    verify_inputs: tuple[Batch, ...] = ()
    target: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    cost: LayerCost | None = None
    seed: int = 0
    progress: Callable[[Progress], None] | None = None
    remarks: list[Remark] = field(default_factory=list)
    channel_moments: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    assigned: dict[str, Assignment] = field(default_factory=dict)
    _place: tuple[str, int, int] = ("", 0, 1)

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator that depends on the seed and ``purpose`` alone."""
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode())])

    def seconds(self, node: Node) -> float:
        """Predicted seconds of a layer on one thread.

        Without a target, those of a nominal machine: the layer's multiply-accumulates at
        :data:`NOMINAL_MACS_PER_SECOND` plus the bytes of its operands and results at
        :data:`NOMINAL_BYTES_PER_SECOND`.
        """
        if self.cost is not None:
            return self.cost(node)
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        moved = sum(v.type.bytes for v in values) / NOMINAL_BYTES_PER_SECOND
        return op_of(node).macs(node) / NOMINAL_MACS_PER_SECOND + moved

    def advance(self, fraction: float, message: str = "") -> None:
        """Tell how much of the running pass is done (0 to 1)."""
        if self.progress is not None:
            name, index, count = self._place
            self.progress(Progress(name, index, count, fraction, message))

    def enter(self, pass_name: str, index: int, count: int) -> None:
        """Called by the manager when a pass starts."""
        self._place = (pass_name, index, count)
        self.advance(0.0)

    def batches(self, needed_by: Pass) -> Iterator[Batch]:
        """Calibration batches.

        Raises:
            DlccError: the user gave no calibration data.
        """
        if self.calibration is None:
            raise DlccError(
                ExitCode.USAGE,
                f"pass {needed_by.name!r} needs calibration data",
                why="it chooses numbers from the activations of typical inputs; none were given",
                fix="give some with --calib FILE.npz (or calibration= in Python)",
            )
        return self.calibration()


@dataclass
class PassResult:
    """What a pass did.

    Attributes:
        modified: False promises that the graph is as it was; the manager checks it.
        statistics: counts and measures by name; units stand in the name (``saved_bytes``).
        remarks: what was done and refused, and why.
    """

    modified: bool = False
    statistics: dict[str, Statistic] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)

    def count(self, key: str, by: int = 1) -> None:
        """Add ``by`` to an integer statistic."""
        self.statistics[key] = int(self.statistics.get(key, 0)) + by


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes. Subclasses with a ``name`` are registered.

    Attributes:
        name: kebab-case name in pipeline text.
        lossy: True if outputs may change; such a pass reports its error in its statistics.
        bodies: True if it rewrites the bodies of loops too, each as a graph of its own.
        stage: when it runs in a recipe; None for EXACT, or WEIGHTS if it is lossy.
    """

    name: ClassVar[str] = ""
    lossy: ClassVar[bool] = False
    bodies: ClassVar[bool] = False
    stage: ClassVar[Stage | None] = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name"):
            _register(cls)

    def __post_init__(self) -> None:
        for item in options_of(type(self)):
            item.check(getattr(self, item.field), f"pass {self.name!r}")

    @classmethod
    def stage_of(cls) -> Stage:
        """When it runs in a recipe."""
        if cls.stage is not None:
            return cls.stage
        return Stage.WEIGHTS if cls.lossy else Stage.EXACT

    @property
    def layer_bits(self) -> int | None:
        """Width at which layers run after this pass; None if it leaves that as it is."""
        return None

    @abstractmethod
    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Rewrite ``graph`` in place.

        Raises:
            DlccError: the user asked for something that cannot be done.
        """

    def usage(self, what: str, why: str, fix: str) -> DlccError:
        """The error for options that cannot be followed."""
        return DlccError(ExitCode.USAGE, what, where=f"pass {self.name!r}", why=why, fix=fix)

    def remark(self, kind: RemarkKind, loc: str, message: str) -> Remark:
        """A remark of this pass."""
        return Remark(self.name, loc, kind, message)


def _register(cls: type[Pass]) -> None:
    known = _REGISTRY.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (
        cls.__module__,
        cls.__qualname__,
    ):
        raise TypeError(f"pass name {cls.name!r} is taken by {known.__module__}.{known.__name__}")
    _REGISTRY[cls.name] = cls


def registered_passes() -> dict[str, type[Pass]]:
    """Every registered pass class by name, in alphabetic order."""
    return dict(sorted(_REGISTRY.items()))


def summary(cls: type[Pass]) -> str:
    """First line of a pass's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def describe(cls: type[Pass]) -> dict[str, Any]:
    """All that help texts and generated tables need: name, summary, description, options."""
    _, _, body = (inspect.getdoc(cls) or "").partition("\n")
    return {
        "name": cls.name,
        "summary": summary(cls),
        "description": body.strip(),
        "lossy": cls.lossy,
        "options": [item.describe() for item in options_of(cls)],
    }


def merge(results: Iterable[PassResult]) -> PassResult:
    """One result out of several; integer statistics are added up, others overwritten."""
    total = PassResult()
    for result in results:
        total.modified |= result.modified
        total.remarks += result.remarks
        for key, value in result.statistics.items():
            if isinstance(value, int):
                total.count(key, value)
            else:
                total.statistics[key] = value
    return total


def part(context: PassContext, start: float, stop: float, message: str) -> Callable[[float], None]:
    """Tells the progress (0 to 1) of a part of the running pass, from ``start`` to ``stop``."""
    return lambda fraction: context.advance(start + (stop - start) * fraction, message)


__all__ = [
    "Batch",
    "Option",
    "Pass",
    "PassContext",
    "PassResult",
    "Progress",
    "Remark",
    "Stage",
    "describe",
    "merge",
    "option",
    "part",
    "registered_passes",
    "summary",
]
