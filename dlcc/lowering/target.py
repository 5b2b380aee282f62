"""What the lowering needs to know of a target: facts for the code generator, and a kernel table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import BFLOAT16, Node
from dlcc.lowering.kernel import ARENA_SLACK, KernelPlan
from dlcc.program import ALIGNMENT

NEARLY = 1.06
"""Predicted times within this factor are as good as equal."""


class KernelRow(ABC):
    """One row of a kernel table: a generator of TIR for some layers.

    Attributes:
        name: shown in reports, e.g. ``conv-amx-int8``.
        ops: names of the ops it may serve; "*" for any.
        encodings: names of the weight's encodings (operand 1) it is made for; empty for any.
    """

    name: ClassVar[str] = ""
    ops: ClassVar[tuple[str, ...]] = ()
    encodings: ClassVar[tuple[str, ...]] = ()

    def serves(self, node: Node) -> bool:
        """Whether ``node`` is of the kind that the row is asked about at all."""
        if node.op not in self.ops and "*" not in self.ops:
            return False
        weight = node.optional_input(1)
        return not self.encodings or (
            weight is not None and weight.type.encoding.name in self.encodings
        )

    @abstractmethod
    def refuses(self, node: Node) -> str:
        """Why this row cannot serve ``node``; "" if it can."""

    @abstractmethod
    def cost(self, node: Node) -> float:
        """Predicted seconds on one thread."""

    @abstractmethod
    def plan(self, node: Node) -> KernelPlan:
        """The kernels for this layer, specialised to its shapes and encodings."""

    def variants(self, node: Node) -> list[str]:
        """Other ways this row can compute ``node`` than :meth:`plan`, best predicted first.

        For measuring (``dlcc tune``); each name is an argument of :meth:`plan_variant`.
        """
        return []

    def plan_variant(self, node: Node, variant: str) -> KernelPlan:
        """As :meth:`plan`, in the way that ``variant`` names.

        Raises:
            ValueError: it is none of :meth:`variants`.
        """
        raise ValueError(f"{self.name} has no variant {variant!r}")


@dataclass(frozen=True)
class Core:
    """What predictions of cycles know of a core.

    Attributes:
        name: LLVM's, of the scheduling model.
        clock: cycles per second; 0: not known.
        l1_bytes: first-level data cache.
        l2_bytes: second-level cache.
        l2_read: bytes that one core reads from there in a cycle.
        memory: bytes per second that one core reads from memory.
        unpredicted: why its cycles cannot be predicted; "" where they can.
    """

    name: str
    clock: float = 0.0
    l1_bytes: int = 32 << 10
    l2_bytes: int = 0
    l2_read: float = 0.0
    memory: float = 0.0
    unpredicted: str = ""


@dataclass(frozen=True)
class Target:
    """A machine to compile for.

    Attributes:
        name: what the user writes after ``--target``, in full (``cpu:avx2``).
        triple: LLVM triple.
        mcpu: LLVM CPU name.
        mattr: LLVM feature flags on top of it.
        features: CPU features that the code needs at run time (names as in /proc/cpuinfo).
        rows: the kernel table; the order only breaks ties of cost.
        sparse_block: rows and columns of blocks of a pruned weight that suit its kernels.
        sparse_short_floats: whether its kernels of pruned weights take 16-bit floats.
        l2_bytes: second-level cache of a core; 0: none is counted on, and layers are run one after
            the other.
        channel_multiple: numbers of channels that leave no part of a vector unused.
        emits: kinds of library that can be made for it, the usual one first.
        most_threads: threads that its runtime can use; 0: any number.
        alignment: bytes, of buffers in the arena and of constants.
        slack: bytes after each of them that its kernels may read.
        short_floats: encodings of 16-bit floats that its code can read and make; the first is what
            a network of 16 bits is rounded to.
        core: where it names one, as predictions know it.
        packed_within: how much longer a row may take that is made for the weight's encoding, and so
            stores fewer bytes, than one over decoded weights; a factor of predicted times.
        device: what runs the kernels, where it is not the CPU; ``triple`` is the host's then, and
            ``mcpu`` the device's architecture.
        tf32_rows: the kernel table where operands of float32 may be rounded to TF32; empty: it has
            no instructions for that.
        tensors_in_arena: memory is so scarce that the arena has places for the network's inputs and
            outputs too, which share it with everything else.
    """

    name: str
    triple: str
    mcpu: str
    mattr: tuple[str, ...]
    features: tuple[str, ...]
    rows: tuple[KernelRow, ...]
    l2_bytes: int = 0
    sparse_block: tuple[int, int] = (16, 4)
    sparse_short_floats: bool = False
    channel_multiple: int = 16
    emits: tuple[str, ...] = ("so", "a", "o")
    most_threads: int = 0
    alignment: int = ALIGNMENT
    slack: int = ARENA_SLACK
    short_floats: tuple[str, ...] = (BFLOAT16.name,)
    core: Core | None = None
    packed_within: float = NEARLY
    tensors_in_arena: bool = False
    device: Literal["", "cuda"] = ""
    tf32_rows: tuple[KernelRow, ...] = ()

    @property
    def facts(self) -> dict[str, int]:
        """What passes may depend on (:attr:`passes.PassContext.target`)."""
        rows, columns = self.sparse_block
        return {
            "sparse_rows": rows,
            "sparse_columns": columns,
            "sparse_short_floats": self.sparse_short_floats,
            "channel_multiple": self.channel_multiple,
        }

    def kinds(self, emit: tuple[str, ...]) -> tuple[str, ...]:
        """What is written where ``emit`` is asked for.

        Raises:
            DlccError: USAGE, the target does not give it.
        """
        missing = [kind for kind in emit if kind not in self.emits]
        if missing:
            raise DlccError(
                ExitCode.USAGE,
                f"target {self.name} gives no {', '.join(missing)}",
                where="--emit",
                why=f"what it gives is {', '.join(self.emits)}",
                fix="portable C comes from --target c"
                if missing == ["c"]
                else f"choose from {', '.join(self.emits)}",
            )
        return emit or self.emits[:1]

    def threads(self, asked: int, usual: int) -> int:
        """Upper bound on the threads of a library where ``asked`` are wanted; 0: ``usual``.

        Raises:
            DlccError: USAGE, the target's runtime has fewer.
        """
        most = self.most_threads
        if most and asked > most:
            raise DlccError(
                ExitCode.USAGE,
                f"target {self.name} has no {asked} threads",
                where="--threads",
                why=f"its runtime uses {most}",
                fix="leave the option out",
            )
        return asked or most or usual

    def rows_for(self, node: Node) -> list[KernelRow]:
        """Rows that may serve ``node``."""
        return [row for row in self.rows if row.serves(node)]

    def with_tf32(self) -> Target:
        """This target with kernels that round operands of float32 to TF32.

        Raises:
            DlccError: USAGE, it has none.
        """
        if not self.tf32_rows:
            raise DlccError(
                ExitCode.USAGE,
                f"target {self.name} has no TF32",
                where="--tf32",
                why="its instructions multiply no such numbers; GPUs do from sm_80 on",
                fix="leave the option out, or compile for cuda:sm_80 or newer",
            )
        return replace(self, rows=self.tf32_rows)

    def without(self, names: Collection[str]) -> Target:
        """This target with the rows called ``names`` left out of its table.

        Raises:
            DlccError: the table has no row of such a name.
        """
        for name in names:
            if name not in {row.name for row in self.rows}:
                raise DlccError(
                    ExitCode.USAGE,
                    f"target {self.name} has no kernel row {name!r}",
                    where="--without",
                    why=f"its rows are {', '.join(row.name for row in self.rows)}",
                    fix="leave the option out to choose among all of them",
                )
        return replace(self, rows=tuple(row for row in self.rows if row.name not in names))
