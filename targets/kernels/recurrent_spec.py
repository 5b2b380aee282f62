"""What a recurrent layer is to its kernel, and how it is cut into blocks."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

from targets.isa import Isa

GROUPS = 4
"""Groups of rows that large weights are read for at once; more would leave threads idle."""

Kind = Literal["lstm", "gru", "rnn"]


@dataclass(frozen=True)
class RecurrentSpec:
    """One direction of a recurrent layer (:mod:`dlcc.ops.recurrent` defines it).

    Attributes:
        kind: which cell.
        steps: T, ``batch``: B, ``units``: H.
        functions: what determines the activations' code.
        given: names of the operands after the gates that are there.
        reverse: from the last step to the first.
        clip: bound of the activations' arguments.
        input_forget: LSTM: the forget gate is 1 - i.
        reset_after: GRU: the reset gate scales the product.
        coded: the recurrent weights are codes, multiplied as integers
            (:mod:`dlcc.ops.recurrent_codes`).
    """

    kind: Kind
    steps: int
    batch: int
    units: int
    functions: tuple[object, ...]
    given: tuple[str, ...] = ()
    reverse: bool = False
    clip: float = inf
    input_forget: bool = False
    reset_after: bool = False
    coded: bool = False

    @property
    def gates(self) -> int:
        """Gates of a unit."""
        return {"lstm": 4, "gru": 3, "rnn": 1}[self.kind]

    @property
    def weight_bytes(self) -> int:
        """Of one recurrent weight."""
        return 1 if self.coded else 4

    @property
    def states(self) -> int:
        """Results beside those of all steps."""
        return 2 if self.kind == "lstm" else 1

    @property
    def phases(self) -> tuple[tuple[int, ...], ...]:
        """Gates whose products are summed together, in turn."""
        if self.kind == "gru" and not self.reset_after:
            return ((0, 1), (2,))
        return (tuple(range(self.gates)),)


@dataclass(frozen=True)
class Block:
    """How a layer is cut.

    Attributes:
        rows: sequences whose sums are in registers together.
        vectors: vectors of units of which that is so.
        lanes: units of a vector.
        groups: so many times ``rows`` sequences are a work item.
    """

    rows: int
    vectors: int
    lanes: int
    groups: int = 1

    @property
    def item(self) -> int:
        """Sequences of a work item."""
        return self.rows * self.groups

    def padded(self, units: int) -> int:
        """Units filled up to whole vectors."""
        return ceil(units / self.lanes) * self.lanes


def block_of(spec: RecurrentSpec, isa: Isa) -> Block:
    """As many sums as registers hold, in rows as even as can be.

    Weights that the second-level cache does not hold are read for several groups of rows at once.
    """
    isa = isa.without_amx() if spec.coded else isa
    room = max(1, isa.registers - 5) if isa.lanes > 1 else 4
    gates = max(len(phase) for phase in spec.phases)
    rows = 1 if "lengths" in spec.given or isa.lanes == 1 else min(spec.batch, room // gates)
    rows = ceil(spec.batch / ceil(spec.batch / max(1, rows)))
    large = rows > 1 and spec.weight_bytes * spec.gates * spec.units**2 > isa.l2
    groups = min(GROUPS, ceil(spec.batch / rows)) if large else 1
    vectors = ceil(spec.units / isa.lanes)
    wanted = 1 if isa.lanes == 1 else max(1, min(room // (gates * rows), 8 // gates))
    fitting = [v for v in range(1, wanted + 1) if vectors % v == 0]
    return Block(rows, fitting[-1], isa.lanes, groups)
