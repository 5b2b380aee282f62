"""The code of a recurrent layer's steps: from gates and sums of products to states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any, ClassVar

from dlcc import tir
from targets.kernels.recurrent_spec import Block, RecurrentSpec

UNROLLED = 4
"""Steps of a unit's sum that the loop over the state makes in a turn."""

Function = Callable[[Any, "tir.Statements"], Any]
"""An activation: of an expression, with names for what it uses several times."""


class Products(ABC):
    """Products of a work item's states and the recurrent weights.

    Attributes:
        reset: where a GRU keeps its state times the reset gate, in sizes of a state.
    """

    reset: ClassVar[int]
    accumulator: ClassVar[str]
    step: int = 1
    """Numbers of a state that one step multiplies."""

    def __init__(
        self, kb: tir.KernelBuilder, spec: RecurrentSpec, block: Block, pointers: dict[str, Any]
    ) -> None:
        self.kb, self.spec, self.block, self.pointers = kb, spec, block, pointers

    @abstractmethod
    def factor(self, at: Any) -> Any:
        """One step's numbers of a state from ``at`` on, in every lane."""

    @abstractmethod
    def weight(self, weights: Any, at: Any) -> Any:
        """One step's weights of a vector of units."""

    @abstractmethod
    def multiply_add(self, total: Any, state: Any, weight: Any) -> Any:
        """``total`` and the products of one step."""

    def first(self, gate: int, unit: Any) -> Any:
        """What sums start from."""
        return self.kb.const(0, self.accumulator, self.block.lanes)

    @abstractmethod
    def real(self, total: Any, gate: int, at: Place) -> Any:
        """A sum as float32."""

    @abstractmethod
    def keep(self, place: Any, h: Any) -> None:
        """Notes a state that the next step multiplies."""

    @abstractmethod
    def keep_reset(self, place: Any, value: Any) -> None:
        """Notes a state times the reset gate, for the next phase."""

    @abstractmethod
    def begin(self, rows: int) -> None:
        """Called when the initial states of ``rows`` sequences are in place."""

    def sums(self, phase: int, block: Any, before: Any, rows: int) -> Any:
        """An array of the sums of one block, [rows, gates of the phase, vectors, lanes]."""
        kb, spec, lanes, step = self.kb, self.spec, self.block.lanes, self.step
        gates, vectors = spec.phases[phase], self.block.vectors
        weights, padded = self.pointers[f"weights{phase}"], self.block.padded(spec.units)
        keys = [(m, g, v) for m in range(rows) for g in gates for v in range(vectors)]
        sums = {key: kb.alloc(self.accumulator, lanes, "sum") for key in keys}
        first = kb.let(block * (vectors * lanes), "first")
        for (_, g, v), total in sums.items():
            kb.store(total, 0, self.first(g, first + v * lanes))
        size = len(gates) * vectors * lanes * step
        steps = -(-spec.units // step)
        start = kb.let(block * (steps * size), "weights")

        def add(k: Any) -> None:
            states = [kb.let(self.factor(before + m * padded + k * step), "h") for m in range(rows)]
            for j, g in enumerate(gates):
                for v in range(vectors):
                    at = start + k * size + (j * vectors + v) * (lanes * step)
                    weight = kb.let(self.weight(weights, at), "w")
                    for m, state in enumerate(states):
                        total = sums[m, g, v]
                        made = self.multiply_add(kb.load(total, 0, lanes), state, weight)
                        kb.store(total, 0, made)

        turns = steps // UNROLLED
        if turns:
            with kb.loop(0, turns, "k") as turn:
                for i in range(UNROLLED):
                    add(turn * UNROLLED + i)
        for i in range(turns * UNROLLED, steps):
            add(i)
        made = kb.alloc(self.accumulator, len(sums) * lanes, "sums")
        for i, total in enumerate(sums.values()):
            kb.store(made, i * lanes, kb.load(total, 0, lanes))
        return made


class RealProducts(Products):
    """In float32; states are read where they are kept."""

    reset = 4
    accumulator = "float32"

    def factor(self, at: Any) -> Any:
        """One number."""
        number = self.kb.let(self.kb.load(self.pointers["state"], at), "h")
        return self.kb.splat(number, self.block.lanes)

    def weight(self, weights: Any, at: Any) -> Any:
        """A vector."""
        return self.kb.load(weights, at, self.block.lanes)

    def multiply_add(self, total: Any, state: Any, weight: Any) -> Any:
        """Fused where there is such an instruction."""
        return total + state * weight

    def real(self, total: Any, gate: int, at: Place) -> Any:
        """It is."""
        return total

    def keep(self, place: Any, h: Any) -> None:
        """Nothing to do."""

    def keep_reset(self, place: Any, value: Any) -> None:
        """Beside the states."""
        kb, block = self.kb, self.block
        size = block.item * block.padded(self.spec.units)
        kb.store(self.pointers["state"], self.reset * size + place, value)

    def begin(self, rows: int) -> None:
        """Nothing to do."""


@dataclass
class Cell:
    """The code of one kernel: parameters by name, and what stands in the thread's memory."""

    kb: tir.KernelBuilder
    spec: RecurrentSpec
    block: Block
    functions: Sequence[Function]
    pointers: dict[str, Any]
    products: Products
    now: Now = field(init=False)

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
        return self.kb.between(value, self.const(-limit), self.const(limit))

    def kept(self, value: Any) -> Any:
        """``value``, computed here. By way of an array, which LLVM makes a register of: TVM looks
        through names at what they stand for, and functions of functions would grow on it.
        """
        spare = self.kb.alloc("float32", self.block.lanes, "kept")
        self.kb.store(spare, 0, value)
        return self.kb.let(self.vector(spare, 0), "value")

    def times(self, a: Any, b: Any) -> Any:
        """A product for a sum, rounded by itself where results are to be the same everywhere."""
        return tir.separate(a * b) if self.spec.coded else a * b

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

    def step(self, t: Any, old: Any, new: Any, first: Any, rows: int) -> None:
        """Step ``t`` of the item's sequences from ``first`` on; states at ``old``, to ``new``."""
        kb = self.kb
        self.now = Now(t, old, new, first)
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
            before = (self.products.reset * self.size if phase else now.old) + start * padded
            sums = self.products.sums(phase, block, before, rows)
        with kb.loop(0, rows, "m") as m:
            row = kb.let((now.t * spec.batch + now.first + start + m) * spec.units, "row")
            for v in range(self.block.vectors):
                if count(v):
                    unit = kb.let(block * self.per_block + v * self.block.lanes, "unit")
                    state = (start + m) * padded + unit
                    place = Place(row, unit, state, now.old, now.new, count(v))
                    self.finish(phase, place, self.sums_of(phase, sums, m, v, place))

    def sums_of(self, phase: int, sums: Any, row: Any, vector: int, at: Place) -> dict[int, Any]:
        """The products of one vector of units, by gate."""
        gates, block = self.spec.phases[phase], self.block
        if "products" in self.spec.given:
            return {g: self.gate(at, g, {}, "products") for g in gates}
        if sums is None:
            return {}
        start = row * (len(gates) * self.per_block)
        places = ((j * block.vectors + vector) * block.lanes for j in range(len(gates)))
        pairs = zip(gates, places, strict=True)
        real = self.products.real
        return {g: self.kb.let(real(self.vector(sums, start + p), g, at), "sum") for g, p in pairs}

    def finish(self, phase: int, at: Place, sums: dict[int, Any]) -> None:
        """From sums to states."""
        if self.spec.kind == "lstm":
            self.lstm(at, sums)
        elif self.spec.kind == "gru":
            (self.candidates if phase else self.gru)(at, sums)
        else:
            self.put(at, self.apply(0, self.cut(self.gate(at, 0, sums))))

    def gate(self, at: Place, gate: int, sums: dict[int, Any], source: str = "gates") -> Any:
        """The projection of a gate plus its product, if there is one."""
        start = at.row * self.spec.gates + (gate * self.spec.units) + at.unit
        value = self.vector(self.pointers[source], start, at.count)
        return value + sums[gate] if gate in sums else value

    def put(self, at: Place, h: Any) -> None:
        """The new state, also as the step's result."""
        h = self.kept(h)
        self.kb.store(self.state, at.new + at.state, h)
        self.products.keep(at.new + at.state, h)
        self.kb.store_first(self.pointers["y"], at.row + at.unit, h, at.count)

    def lstm(self, at: Place, sums: dict[int, Any]) -> None:
        """Gates i, o, f, c."""
        kb, place = self.kb, 2 * self.size + at.state
        c = kb.let(self.vector(self.state, place), "c")

        def argument(gate: int, cell: Any) -> Any:
            value = self.gate(at, gate, sums)
            if "peephole" in self.spec.given:
                weights = self.pointers["peephole"]
                weight = self.vector(weights, at.unit + gate * self.spec.units, at.count)
                value = value + self.times(weight, cell)
            return self.cut(value)

        i = self.apply(0, argument(0, c))
        forget = self.const(1.0) - i if self.spec.input_forget else self.apply(0, argument(2, c))
        candidate = self.apply(1, self.cut(self.gate(at, 3, sums)))
        cell = self.kept(self.times(forget, c) + self.times(i, candidate))
        kb.store(self.state, place, cell)
        o = self.apply(0, argument(1, cell))
        self.put(at, o * self.apply(2, cell))

    def gru(self, at: Place, sums: dict[int, Any]) -> None:
        """Gates z and r, and where the reset gate comes after the product, the state."""
        h = self.kb.let(self.vector(self.state, at.old + at.state), "before")
        z = self.apply(0, self.cut(self.gate(at, 0, sums)))
        r = self.apply(0, self.cut(self.gate(at, 1, sums)))
        if not self.spec.reset_after:
            self.kb.store(self.state, 3 * self.size + at.state, z)
            self.products.keep_reset(at.state, r * h)
            return
        product = sums.get(2, self.const(0.0))
        if "bias" in self.spec.given:
            product = product + self.vector(self.pointers["bias"], at.unit, at.count)
        n = self.apply(1, self.cut(self.gate(at, 2, {}) + self.times(r, product)))
        self.put(at, self.times(self.const(1.0) - z, n) + self.times(z, h))

    def candidates(self, at: Place, sums: dict[int, Any]) -> None:
        """The state, from gates of the phase before."""
        n = self.apply(1, self.cut(self.gate(at, 2, sums)))
        z = self.vector(self.state, 3 * self.size + at.state)
        h = self.vector(self.state, at.old + at.state)
        self.put(at, self.times(self.const(1.0) - z, n) + self.times(z, h))

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
        self.products.begin(rows)

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
class Now:
    """A step: its number, where h was and goes, and the item's first sequence."""

    t: Any
    old: Any
    new: Any
    first: Any


@dataclass(frozen=True)
class Place:
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
