"""LSTM, GRU and RNN: all time steps of some sequences in one call.

A work item is a few sequences, whose states stay in memory of the thread. In each step every
vector of units sums, gate beside gate, the products of the state before and the recurrent weights,
which are packed so that a unit's gates follow each other; then it becomes the new state at once.
With several sequences an item, a weight that is loaded is multiplied for each of them. A GRU whose
reset gate comes before the product runs twice over its units in a step: first the two gates, then
the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, inf
from typing import Any, Literal

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa

UNROLLED = 4
"""Products of a unit's sum that the loop over the state makes in a turn."""

GROUPS = 4
"""Groups of rows that large weights are read for at once; more would leave threads idle."""

FUNCTION_CYCLES = 20.0
"""Predicted cycles of one activation of a vector."""

Kind = Literal["lstm", "gru", "rnn"]

Function = Callable[[Any, "tir.Statements"], Any]
"""An activation: of an expression, with names for what it uses several times."""


@dataclass(frozen=True)
class RecurrentSpec:
    """One direction of a recurrent layer (:mod:`dlcc.ops.recurrent` defines it), float32.

    Attributes:
        kind: which cell.
        steps: T, ``batch``: B, ``units``: H.
        functions: what determines the activations' code.
        given: names of the operands after the gates that are there.
        reverse: from the last step to the first.
        clip: bound of the activations' arguments.
        input_forget: LSTM: the forget gate is 1 - i.
        reset_after: GRU: the reset gate scales the product.
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

    @property
    def gates(self) -> int:
        """Gates of a unit."""
        return {"lstm": 4, "gru": 3, "rnn": 1}[self.kind]

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
    room = max(1, isa.registers - 5) if isa.lanes > 1 else 4
    gates = max(len(phase) for phase in spec.phases)
    rows = 1 if "lengths" in spec.given or isa.lanes == 1 else min(spec.batch, room // gates)
    rows = ceil(spec.batch / ceil(spec.batch / max(1, rows)))
    large = rows > 1 and 4 * spec.gates * spec.units**2 > isa.l2
    groups = min(GROUPS, ceil(spec.batch / rows)) if large else 1
    vectors = ceil(spec.units / isa.lanes)
    wanted = 1 if isa.lanes == 1 else max(1, min(room // (gates * rows), 8 // gates))
    fitting = [v for v in range(1, wanted + 1) if vectors % v == 0]
    return Block(rows, fitting[-1], isa.lanes, groups)


def packed_weights(spec: RecurrentSpec, block: Block, weights: np.ndarray) -> list[np.ndarray]:
    """[G*H,H] for each phase as [vectors / block.vectors, H, gates, block.vectors, lanes]."""
    units, padded = spec.units, block.padded(spec.units)
    by_gate = np.zeros((spec.gates, padded, units), np.float32)
    by_gate[:, :units] = weights.reshape(spec.gates, units, units)
    out = []
    for phase in spec.phases:
        part = by_gate[list(phase)].reshape(len(phase), -1, block.vectors, block.lanes, units)
        out.append(np.ascontiguousarray(part.transpose(1, 4, 0, 2, 3)).reshape(-1))
    return out


@dataclass
class _Cell:
    """The code of one kernel: parameters by name, and what stands in the thread's memory."""

    kb: tir.KernelBuilder
    spec: RecurrentSpec
    block: Block
    functions: Sequence[Function]
    pointers: dict[str, Any]
    now: _Now = field(init=False)

    @cached_property
    def size(self) -> int:
        """Numbers of a state of one work item."""
        return self.block.item * self.block.padded(self.spec.units)

    @property
    def state(self) -> Any:
        """The thread's memory: h twice, c, and what a phase leaves to the next (z, r h)."""
        return self.pointers["state"]

    def vector(self, buffer: Any, index: Any, count: int | None = None) -> Any:
        """A vector, or its first ``count`` lanes."""
        lanes = self.block.lanes
        return self.kb.load_first(buffer, index, lanes, lanes if count is None else count)

    def const(self, value: float) -> Any:
        """In every lane."""
        return self.kb.const(value, "float32", self.block.lanes)

    def cut(self, value: Any) -> Any:
        """Within the clip."""
        limit = self.spec.clip
        if limit == inf:
            return value
        return tir.tirx.max(tir.tirx.min(value, self.const(limit)), self.const(-limit))

    def kept(self, value: Any) -> Any:
        """``value``, computed here. By way of an array, which LLVM makes a register of: TVM looks
        through names at what they stand for, and functions of functions would grow on it.
        """
        spare = self.kb.alloc("float32", self.block.lanes, "kept")
        self.kb.store(spare, 0, value)
        return self.kb.let(self.vector(spare, 0), "value")

    def apply(self, index: int, value: Any) -> Any:
        """Activation ``index``."""
        names = tir.Statements(self.kb)
        return self.kept(self.functions[index](self.kept(value), names))

    # -- units ----------------------------------------------------------------------------------

    @property
    def per_block(self) -> int:
        """Units of a block."""
        return self.block.vectors * self.block.lanes

    @property
    def whole_blocks(self) -> int:
        """Blocks without a part of a vector."""
        return self.spec.units // self.per_block

    def each_block(self, body: Callable[[Any, Callable[[int], int]], None]) -> None:
        """``body(block, count)``: ``count`` tells how many lanes of a block's vector are units."""
        lanes = self.block.lanes
        if self.whole_blocks:
            with self.kb.loop(0, self.whole_blocks, "units") as block:
                body(block, lambda _: lanes)
        left = self.spec.units % self.per_block
        if left:
            last = tir.tirx.IntImm("int32", self.whole_blocks)
            body(last, lambda v: max(0, min(lanes, left - v * lanes)))

    def copy(self, source: Any, start: Any, target: Any, to: Any, *, out: bool) -> None:
        """H numbers between a row of a tensor and padded memory (``out``: from the latter)."""
        lanes = self.block.lanes

        def body(block: Any, count: Callable[[int], int]) -> None:
            for v in range(self.block.vectors):
                if count(v):
                    at = block * self.per_block + v * lanes
                    value = self.vector(source, start + at, lanes if out else count(v))
                    self.kb.store_first(target, to + at, value, count(v) if out else lanes)

        self.each_block(body)

    # -- one step -------------------------------------------------------------------------------

    def products(self, phase: int, block: Any, before: Any, rows: int) -> Any:
        """An array of the sums of one block, [rows, gates of the phase, vectors, lanes]."""
        kb, spec, lanes = self.kb, self.spec, self.block.lanes
        gates, vectors = spec.phases[phase], self.block.vectors
        weights = self.pointers[f"weights{phase}"]
        keys = [(m, g, v) for m in range(rows) for g in gates for v in range(vectors)]
        sums = {key: kb.alloc("float32", lanes, "sum") for key in keys}
        for total in sums.values():
            kb.store(total, 0, self.const(0.0))
        step, padded = len(gates) * self.per_block, self.block.padded(spec.units)
        start = kb.let(block * (spec.units * step), "weights")

        def add(k: Any) -> None:
            states = [
                kb.splat(kb.let(kb.load(self.state, before + m * padded + k), "h"), lanes)
                for m in range(rows)
            ]
            for j, g in enumerate(gates):
                for v in range(vectors):
                    at = start + k * step + (j * vectors + v) * lanes
                    weight = kb.let(self.vector(weights, at), "w")
                    for m, state in enumerate(states):
                        total = sums[m, g, v]
                        kb.store(total, 0, kb.load(total, 0, lanes) + state * weight)

        turns = spec.units // UNROLLED
        if turns:
            with kb.loop(0, turns, "k") as turn:
                for i in range(UNROLLED):
                    add(turn * UNROLLED + i)
        for i in range(turns * UNROLLED, spec.units):
            add(i)
        made = kb.alloc("float32", len(sums) * lanes, "sums")
        for i, total in enumerate(sums.values()):
            kb.store(made, i * lanes, kb.load(total, 0, lanes))
        return made

    def step(self, t: Any, old: Any, new: Any, first: Any, rows: int) -> None:
        """Step ``t`` of the item's sequences from ``first`` on; states at ``old``, to ``new``."""
        kb = self.kb
        self.now = _Now(t, old, new, first)
        for phase in range(len(self.spec.phases)):

            def body(block: Any, count: Callable[[int], int], phase: int = phase) -> None:
                whole, left = divmod(rows, self.block.rows)
                if whole:
                    with kb.loop(0, whole, "group") as group:
                        at = group * self.block.rows
                        self.group(phase, block, count, at, self.block.rows)
                if left:
                    self.group(phase, block, count, whole * self.block.rows, left)

            self.each_block(body)

    def group(
        self, phase: int, block: Any, count: Callable[[int], int], start: Any, rows: int
    ) -> None:
        """One block of units of ``rows`` sequences, from ``start`` of the item's on."""
        kb, spec, now = self.kb, self.spec, self.now
        padded, sums = self.block.padded(spec.units), None
        if "recurrent" in spec.given:
            before = (4 * self.size if phase else now.old) + start * padded
            sums = self.products(phase, block, before, rows)
        with kb.loop(0, rows, "m") as m:
            row = kb.let((now.t * spec.batch + now.first + start + m) * spec.units, "row")
            for v in range(self.block.vectors):
                if count(v):
                    unit = kb.let(block * self.per_block + v * self.block.lanes, "unit")
                    state = (start + m) * padded + unit
                    place = _Place(row, unit, state, now.old, now.new, count(v))
                    self.finish(phase, place, self.sums_of(phase, sums, m, v, place))

    def sums_of(self, phase: int, sums: Any, row: Any, vector: int, at: _Place) -> dict[int, Any]:
        """The products of one vector of units, by gate."""
        gates, block = self.spec.phases[phase], self.block
        if "products" in self.spec.given:
            return {g: self.gate(at, g, {}, "products") for g in gates}
        if sums is None:
            return {}
        start = row * (len(gates) * self.per_block)
        places = ((j * block.vectors + vector) * block.lanes for j in range(len(gates)))
        pairs = zip(gates, places, strict=True)
        return {g: self.kb.let(self.vector(sums, start + at), "sum") for g, at in pairs}

    def finish(self, phase: int, at: _Place, sums: dict[int, Any]) -> None:
        """From sums to states."""
        if self.spec.kind == "lstm":
            self.lstm(at, sums)
        elif self.spec.kind == "gru":
            (self.candidates if phase else self.gru)(at, sums)
        else:
            self.put(at, self.apply(0, self.cut(self.gate(at, 0, sums))))

    def gate(self, at: _Place, gate: int, sums: dict[int, Any], source: str = "gates") -> Any:
        """The projection of a gate plus its product, if there is one."""
        start = at.row * self.spec.gates + (gate * self.spec.units) + at.unit
        value = self.vector(self.pointers[source], start, at.count)
        return value + sums[gate] if gate in sums else value

    def put(self, at: _Place, h: Any) -> None:
        """The new state, also as the step's result."""
        h = self.kept(h)
        self.kb.store(self.state, at.new + at.state, h)
        self.kb.store_first(self.pointers["y"], at.row + at.unit, h, at.count)

    def lstm(self, at: _Place, sums: dict[int, Any]) -> None:
        """Gates i, o, f, c."""
        kb, place = self.kb, 2 * self.size + at.state
        c = kb.let(self.vector(self.state, place), "c")

        def argument(gate: int, cell: Any) -> Any:
            value = self.gate(at, gate, sums)
            if "peephole" in self.spec.given:
                weights = self.pointers["peephole"]
                weight = self.vector(weights, at.unit + gate * self.spec.units, at.count)
                value = value + weight * cell
            return self.cut(value)

        i = self.apply(0, argument(0, c))
        forget = self.const(1.0) - i if self.spec.input_forget else self.apply(0, argument(2, c))
        candidate = self.apply(1, self.cut(self.gate(at, 3, sums)))
        cell = self.kept(forget * c + i * candidate)
        kb.store(self.state, place, cell)
        o = self.apply(0, argument(1, cell))
        self.put(at, o * self.apply(2, cell))

    def gru(self, at: _Place, sums: dict[int, Any]) -> None:
        """Gates z and r, and where the reset gate comes after the product, the state."""
        h = self.kb.let(self.vector(self.state, at.old + at.state), "before")
        z = self.apply(0, self.cut(self.gate(at, 0, sums)))
        r = self.apply(0, self.cut(self.gate(at, 1, sums)))
        if not self.spec.reset_after:
            self.kb.store(self.state, 3 * self.size + at.state, z)
            self.kb.store(self.state, 4 * self.size + at.state, r * h)
            return
        product = sums.get(2, self.const(0.0))
        if "bias" in self.spec.given:
            product = product + self.vector(self.pointers["bias"], at.unit, at.count)
        n = self.apply(1, self.cut(self.gate(at, 2, {}) + r * product))
        self.put(at, (self.const(1.0) - z) * n + z * h)

    def candidates(self, at: _Place, sums: dict[int, Any]) -> None:
        """The state, from gates of the phase before."""
        n = self.apply(1, self.cut(self.gate(at, 2, sums)))
        z = self.vector(self.state, 3 * self.size + at.state)
        h = self.vector(self.state, at.old + at.state)
        self.put(at, (self.const(1.0) - z) * n + z * h)

    # -- all steps ------------------------------------------------------------------------------

    def begin(self, first: Any, rows: int, steps: Any) -> None:
        """The initial states; 0 where none are given, and for a sequence of no steps."""
        kb, spec = self.kb, self.spec
        padded, lanes = self.block.padded(spec.units), self.block.lanes
        for k, name in enumerate(("h0", "c0")[: spec.states]):
            with kb.loop(0, rows, "m") as m:
                to = kb.let(m * padded + (2 * k * self.size), "to")
                if name in spec.given:
                    start = kb.let((first + m) * spec.units, "start")
                    self.copy(self.pointers[name], start, self.state, to, out=False)
                if name not in spec.given or "lengths" in spec.given:
                    empty = steps.equal(0) if name in spec.given else True
                    with kb.when(empty), kb.loop(0, padded // lanes, "unit") as unit:
                        kb.store(self.state, to + unit * lanes, self.const(0.0))

    def sequences(self, first: Any, rows: int) -> None:
        """All steps of ``rows`` sequences from ``first`` on."""
        kb, spec = self.kb, self.spec
        padded = self.block.padded(spec.units)
        steps: Any = spec.steps
        if "lengths" in spec.given:
            length = kb.load(self.pointers["lengths"], first)
            steps = kb.let(tir.tirx.min(tir.tirx.max(length, 0), spec.steps), "steps")
        self.begin(first, rows, steps)
        with kb.loop(0, steps, "step") as step:
            t = kb.let(steps - 1 - step if spec.reverse else step + 0, "t")
            odd = kb.let(tir.tirx.truncmod(step, 2) * self.size, "odd")
            self.step(t, odd, kb.let(self.size - odd, "even"), first, rows)
        last = tir.tirx.truncmod(steps, 2) if "lengths" in spec.given else steps % 2
        for k, name in enumerate(("y_h", "y_c")[: spec.states]):
            with kb.loop(0, rows, "m") as m:
                place = m * padded + (2 * self.size if k else last * self.size)
                start = kb.let((first + m) * spec.units, "start")
                self.copy(self.state, place, self.pointers[name], start, out=True)
        if "lengths" in spec.given:
            with kb.loop(0, spec.steps - steps, "rest") as rest:
                row = kb.let(((steps + rest) * spec.batch + first) * spec.units, "row")
                with kb.loop(0, spec.units, "unit") as unit:
                    kb.store(self.pointers["y"], row + unit, kb.const(0.0, "float32"))


@dataclass(frozen=True)
class _Now:
    """A step: its number, where h was and goes, and the item's first sequence."""

    t: Any
    old: Any
    new: Any
    first: Any


@dataclass(frozen=True)
class _Place:
    """One vector of units of one sequence in one step.

    Attributes:
        row: index of the step's first result.
        unit: first unit.
        state: index in a state of the item.
        old: where h was, ``new``: where it goes.
        count: lanes that are units.
    """

    row: Any
    unit: Any
    state: Any
    old: Any
    new: Any
    count: int


def _parameters(spec: RecurrentSpec) -> list[str]:
    weights = [f"weights{k}" for k in range(len(spec.phases)) if "recurrent" in spec.given]
    others = [name for name in spec.given if name != "recurrent"]
    return ["gates", *weights, *others, "y", *("y_h", "y_c")[: spec.states], "state"]


def recurrent_function(
    name: str, spec: RecurrentSpec, block: Block, functions: Sequence[Function]
) -> Any:
    """The kernel; parameters in the order of the plan's arguments."""
    kb = tir.KernelBuilder(name)
    pointers = {
        key: kb.pointer(key, "int32" if key == "lengths" else "float32", align=4)
        for key in _parameters(spec)
    }
    cell = _Cell(kb, spec, block, functions, pointers)
    with kb.loop(kb.begin, kb.end, "item") as item:
        first = kb.let(item * block.item, "first")
        whole, left = divmod(spec.batch, block.item)
        if whole:
            with kb.when(item < whole if left else True):
                cell.sequences(first, block.item)
        if left:
            with kb.when(item >= whole):
                cell.sequences(first, left)
    return kb.build()


def pack_function(name: str, spec: RecurrentSpec, block: Block, phase: int) -> Any:
    """Packs recurrent weights of the run time; a work item is a block of units."""
    kb = tir.KernelBuilder(name)
    source, target = kb.pointer("weights", "float32", align=4), kb.pointer("packed", "float32")
    gates, lanes = spec.phases[phase], block.lanes
    per_block = block.vectors * lanes
    with kb.loop(kb.begin, kb.end, "block") as item, kb.loop(0, spec.units, "k") as k:
        start = kb.let((item * spec.units + k) * (len(gates) * per_block), "start")
        for j, gate in enumerate(gates):
            with kb.loop(0, per_block, "unit") as unit:
                row = kb.let(item * per_block + unit, "row")
                to = start + j * per_block + unit
                kb.store(target, to, kb.const(0.0, "float32"))
                with kb.when(row < spec.units if spec.units % per_block else True):
                    at = (row + gate * spec.units) * spec.units + k
                    kb.store(target, to, kb.load(source, at))
    return kb.build()


def recurrent(
    spec: RecurrentSpec,
    isa: Isa,
    functions: Sequence[Function],
    places: dict[str, KernelArg],
    constants: dict[str, np.ndarray],
) -> KernelPlan:
    """Plans the layer.

    Args:
        spec: the layer.
        isa: the instruction set.
        functions: the activations.
        places: operands that are computed, by name.
        constants: operands that are known, by name, in their shapes.
    """
    block = block_of(spec, isa)
    args = dict(places)
    known = dict(constants)
    steps: list[KernelStep] = []
    scratch: list[int] = []
    padded, phases = block.padded(spec.units), len(spec.phases)
    key = name_key("recurrent", spec, block, isa.arch, isa.fma)
    if "recurrent" in known:
        packed = packed_weights(spec, block, known.pop("recurrent"))
        known.update({f"weights{k}": part for k, part in enumerate(packed)})
    elif "recurrent" in args:
        source = args.pop("recurrent")
        for k, phase in enumerate(spec.phases):
            name = name_key("recurrent_pack", spec.units, spec.gates, phase, block)
            steps.append(
                KernelStep(
                    name,
                    lambda name=name, k=k: pack_function(name, spec, block, k),  # type: ignore[misc]
                    (source, ("scratch", k)),
                    padded // (block.vectors * block.lanes),
                )
            )
            args[f"weights{k}"] = ("scratch", k)
            scratch.append(4 * len(phase) * padded * spec.units)
    args.update({name: ("const", name) for name in known})
    args.update({"y": ("out", 0), "y_h": ("out", 1), "y_c": ("out", 2)})
    args["state"] = ("thread_scratch", 0)
    parts = 3 if phases == 1 else 5
    steps.append(
        KernelStep(
            key,
            lambda: recurrent_function(key, spec, block, functions),
            tuple(args[name] for name in _parameters(spec)),
            ceil(spec.batch / block.item),
            seconds=recurrent_cost(spec, isa),
        )
    )
    return KernelPlan(
        tuple(steps),
        known,
        scratch=tuple(scratch),
        thread_scratch=(4 * parts * block.item * padded,),
        features=isa.vector_flags(),
        kernel=f"{spec.kind}, {block.item} of {spec.batch} sequences at once",
    )


def recurrent_cost(spec: RecurrentSpec, isa: Isa) -> float:
    """Predicted seconds on one thread."""
    block = block_of(spec, isa)
    vectors = ceil(spec.units / block.lanes)
    items = ceil(spec.batch / block.item)
    functions = spec.batch * vectors * len(spec.functions) * FUNCTION_CYCLES / CLOCK
    if "recurrent" not in spec.given:
        return spec.steps * functions
    products = spec.batch * spec.gates * vectors * spec.units / (2 * CLOCK)
    weights = 4 * spec.gates * block.padded(spec.units) * spec.units
    return spec.steps * (max(products, items * isa.read_seconds(weights)) + functions)
