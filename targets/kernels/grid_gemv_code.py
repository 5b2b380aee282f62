"""The kernel of :mod:`targets.kernels.grid_gemv`: few rows times a matrix that is read once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dlcc import tir
from targets.kernels import epilogue
from targets.kernels.spec import NUMPY, SIZE, Epilogue, InType

LOAD = 16
"""Bytes that a thread reads at once."""

WARP = 32
_MANTISSA = 23
_ONE = 1 << _MANTISSA
"""2^23: as a float32 its last bit counts 1, and a code below it is added by ``or``."""

_BYTES_OF_ONE = 0x01010101

Kind = Literal["dense", "codes", "table"]


@dataclass(frozen=True)
class Plane:
    """Codes u of ``width`` bits: they stand for ``base + step * u``, times a row of factors."""

    width: int
    base: int = 0
    step: int = 1
    factor: int = 0


@dataclass(frozen=True)
class Gemv:
    """What determines the code.

    Attributes:
        rows: of the activations, ``depth`` elements each: a multiple of what 16 bytes hold.
        outputs: rows of the weights.
        x: type of the activations.
        kind: what the weights are: of the type of the activations (int8 beside u8), codes of
            ``planes``, or places in a table of ``entries`` numbers, of one plane.
        factors: rows of factors of the sums; 0: none.
        group: columns that share a scale; 0: none do.
        lanes: threads that share an output, a power of two up to 32.
        each: outputs of a thread.
        warps: of a block that share an output, each with every ``warps``-th step.
        side: warps of a block that have outputs of their own.
        signs: whether bytes are eight signs; the results are the numbers of those that differ.
    """

    rows: int
    depth: int
    outputs: int
    x: InType
    kind: Kind
    planes: tuple[Plane, ...]
    epilogue: Epilogue
    entries: int = 0
    factors: int = 0
    group: int = 0
    lanes: int = 32
    each: int = 1
    warps: int = 1
    side: int = 4
    signs: bool = False

    @property
    def integer(self) -> bool:
        """Whether products are of codes."""
        return self.x == "u8"

    @property
    def part(self) -> int:
        """Activations of 16 bytes."""
        return LOAD // SIZE[self.x]

    @property
    def columns(self) -> int:
        """Columns of a thread's step: what 16 bytes of the narrowest plane hold."""
        return 8 * LOAD // min(plane.width for plane in self.planes)

    @property
    def loads(self) -> int:
        """Loads of 16 bytes of weights of a thread's step, for an output."""
        return sum(plane.width * self.columns // (8 * LOAD) for plane in self.planes)

    @property
    def steps(self) -> int:
        """Steps of an output."""
        return -(-self.depth // (self.lanes * self.columns))

    @property
    def warp_outputs(self) -> int:
        """Outputs of a warp."""
        return WARP // self.lanes * self.each

    @property
    def tiles(self) -> int:
        """Warps that all outputs take."""
        return -(-self.outputs // self.warp_outputs)

    @property
    def blocks(self) -> int:
        """Blocks of the grid."""
        return -(-self.tiles // self.side)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * self.warps * self.side

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are read."""
        return self.tiles * self.steps * self.loads * self.each * WARP * LOAD

    @property
    def copies(self) -> int:
        """Of a table, so that threads of a warp meet in few banks; a power of two."""
        return max(1, min(WARP, 2048 // self.entries)) if self.entries else 0

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        results = self.warps * self.side * self.warp_outputs * self.rows
        return 4 * (results + self.entries * self.copies)

    @property
    def fields(self) -> int:
        """Sums of codes that an output and a row have in a thread.

        Of one row codes are multiplied where they stand in their bytes; sums of each place are
        shifted once, at the end.
        """
        if not self.integer or self.kind == "dense":
            return max(1, self.factors)
        return sum(8 // p.width if self.rows == 1 else 1 for p in self.planes)


def gemv_function(key: str, gemv: Gemv) -> Callable[[], Any]:
    """What makes the kernel.

    It takes x, weight, then (table: book), (factors or group: factors), and what the epilogue
    takes.
    """
    return lambda: _Emitter(key, gemv).build()


class _Emitter:
    """Emits one kernel."""

    def __init__(self, key: str, gemv: Gemv) -> None:
        from dlcc.tir.cuda import GridBuilder

        self.gemv = gemv
        self.kb = kb = GridBuilder(key, gemv.threads)
        self.x, self.weight = kb.pointer("x", NUMPY[gemv.x]), kb.pointer("weight", "uint8")
        self.book = kb.pointer("book", "float32") if gemv.entries else None
        scaled = gemv.factors or gemv.group
        self.factors = kb.pointer("factors", "float32") if scaled else None
        out = gemv.epilogue
        self.at: Any = None
        if gemv.signs:
            self.y = kb.pointer("y", "int32")
        else:
            self.at = epilogue.parameters(kb, gemv.integer, out.out, out.residual)
        self.sum_type = "int32" if gemv.integer else "float32"
        self.totals: Any = None

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb, gemv = self.kb, self.gemv
        count = gemv.warps * gemv.side * gemv.warp_outputs * gemv.rows
        self.shared = kb.shared(self.sum_type, count, "results")
        self.table = self._table() if self.book is not None else None
        self.lane = kb.let(kb.thread % WARP, "lane")
        self.column_lane = kb.let(self.lane % gemv.lanes, "column_lane")
        warp = kb.let(kb.thread // WARP, "warp")
        self.place, self.turn = kb.let(warp // gemv.warps, "place"), kb.let(warp % gemv.warps)
        tile = kb.block * gemv.side + self.place
        if gemv.tiles % gemv.side:  # a last block's warps without outputs repeat others'
            tile = tir.tirx.min(tile, gemv.tiles - 1)
        tile = kb.let(tile, "tile")
        first = tile * gemv.warp_outputs + self.lane // gemv.lanes * gemv.each
        self.tile, self.first = tile, kb.let(first, "first")
        self._sums()
        kb.sync()
        self._finish()
        return kb.build()

    def _table(self) -> Any:
        """The table in shared memory, ``copies`` of each entry side by side."""
        kb, gemv = self.kb, self.gemv
        size = gemv.entries * gemv.copies
        table = kb.shared("float32", size, "table")
        with kb.loop(0, -(-size // gemv.threads), "turn") as turn:
            at = kb.let(turn * gemv.threads + kb.thread, "at")
            with kb.when(True if size % gemv.threads == 0 else at < size):
                kb.store(table, at, kb.load(self.book, at // gemv.copies))
        kb.sync()
        return table

    # -- the sums of a thread -------------------------------------------------------------------

    def _sums(self) -> None:
        kb, gemv = self.kb, self.gemv
        count = gemv.each * gemv.rows * gemv.fields
        self.acc = kb.alloc(self.sum_type, count, "sums")
        for i in range(count):
            kb.store(self.acc, i, kb.const(0, self.sum_type))
        if self._biased():
            self.totals = kb.alloc("int32", gemv.rows, "totals")
            for row in range(gemv.rows):
                kb.store(self.totals, row, kb.const(0, "int32"))
        turns = -(-gemv.steps // gemv.warps)
        at_once = max(1, min(turns, 8 // (gemv.loads * gemv.each)))
        if turns // at_once:
            with kb.loop(0, turns // at_once, "several") as several:
                self._steps(several * at_once, at_once)
        if turns % at_once:
            self._steps(turns // at_once * at_once, turns % at_once)
        self._reduce()

    def _biased(self) -> bool:
        """Whether sums of the activations make up for the codes' base."""
        gemv = self.gemv
        return gemv.integer and gemv.kind == "codes" and any(p.base for p in gemv.planes)

    def _steps(self, turn: Any, count: int) -> None:
        """``count`` steps of this warp, all of whose weights are asked for first."""
        kb, gemv = self.kb, self.gemv
        steps = [kb.let((turn + i) * gemv.warps + self.turn, "step") for i in range(count)]
        inside = [True if gemv.steps % gemv.warps == 0 else s < gemv.steps for s in steps]
        words = []
        for step, test in zip(steps, inside, strict=True):
            held = kb.alloc("uint32", 4 * gemv.loads * gemv.each, "weights")
            words.append(held)
            if test is not True:
                for i in range(4 * gemv.loads * gemv.each):
                    kb.store(held, i, kb.const(0, "uint32"))
            with kb.when(test):
                start = (self.tile * gemv.steps + step) * (gemv.loads * gemv.each)
                start = kb.let(start * (WARP * LOAD) + self.lane * LOAD, "start")
                for load in range(gemv.loads):
                    for r in range(gemv.each):
                        source = start + (load * gemv.each + r) * (WARP * LOAD)
                        to = kb.address(held, 4 * (r * gemv.loads + load))
                        kb.call("dlcc_stream16", to, kb.address(self.weight, source))
        for step, held, test in zip(steps, words, inside, strict=True):
            with kb.when(test):
                self._step(step, held)

    def _step(self, step: Any, words: Any) -> None:
        """The products of a step, 16 bytes of activations at a time."""
        kb, gemv = self.kb, self.gemv
        x = kb.alloc("uint32", 4 * gemv.rows, "x")
        begin = step * (gemv.lanes * gemv.columns) + self.column_lane * gemv.part
        begin = kb.let(begin, "begin")
        multiply = {"dense": self._dense, "table": self._reals}.get(
            gemv.kind, self._codes if gemv.integer else self._reals
        )
        whole = gemv.depth % (gemv.lanes * gemv.columns) == 0
        for part in range(gemv.columns // gemv.part):
            column = kb.let(begin + part * (gemv.lanes * gemv.part), "column")
            inside = True if whole else column < gemv.depth
            for row in range(gemv.rows):
                if not whole:
                    for i in range(4):
                        kb.store(x, 4 * row + i, kb.const(0, "uint32"))
                with kb.when(inside):
                    source = kb.address(self.x, column + row * gemv.depth)
                    kb.call("dlcc_load16", kb.address(x, 4 * row), source)
            multiply(words, x, part, column)

    def _sum(self, output: int, row: int, field: int = 0) -> int:
        """Place of a sum."""
        return (output * self.gemv.rows + row) * self.gemv.fields + field

    def _dense(self, words: Any, x: Any, part: int, column: Any) -> None:
        """Weights that are as wide as the activations."""
        kb, gemv = self.kb, self.gemv
        name = "b1" if gemv.signs else "u8s8" if gemv.integer else gemv.x
        for r in range(gemv.each):
            for row in range(gemv.rows):
                operands = kb.address(x, 4 * row), kb.address(words, 4 * (r * gemv.loads + part))
                kb.call(f"dlcc_dot16_{name}", kb.address(self.acc, self._sum(r, row)), *operands)

    def _codes(self, words: Any, x: Any, part: int, column: Any) -> None:
        """Codes of 8-bit activations: four products with one instruction, once masked."""
        kb, gemv = self.kb, self.gemv
        for i in range(4):
            for row in range(gemv.rows if self.totals is not None else 0):
                operands = kb.load(x, 4 * row + i), kb.const(_BYTES_OF_ONE, "uint32")
                kb.call("dlcc_dot4_u8u8", kb.address(self.totals, row), *operands)
            for r in range(gemv.each):
                field, first = 0, r * gemv.loads * 4
                for plane in gemv.planes:
                    places = 8 // plane.width
                    word, place = divmod(4 * part + i, places)
                    codes = kb.load(words, first + word)
                    mask = ((1 << plane.width) - 1) * _BYTES_OF_ONE
                    if gemv.rows == 1:
                        mask <<= place * plane.width
                    elif place:
                        codes = kb.extern(
                            "dlcc_shift", "uint32", 1, codes, kb.const(place * plane.width, "int32")
                        )
                    codes = tir.tirx.bitwise_and(codes, kb.const(mask, "uint32"))
                    codes = kb.let(codes, "codes")
                    for row in range(gemv.rows):
                        at = self._sum(r, row, field + (place if gemv.rows == 1 else 0))
                        operand = kb.load(x, 4 * row + i)
                        kb.call("dlcc_dot4_u8u8", kb.address(self.acc, at), operand, codes)
                    field += places if gemv.rows == 1 else 1
                    first += plane.width * gemv.columns // 32

    def _reals(self, words: Any, x: Any, part: int, column: Any) -> None:
        """Codes of float32 activations; of a group, sums of four are scaled."""
        kb, gemv = self.kb, self.gemv
        for r in range(gemv.each):
            own = None
            if gemv.group:
                own = kb.alloc("float32", gemv.rows, "own")
                for row in range(gemv.rows):
                    kb.store(own, row, kb.const(0, "float32"))
            for i in range(4):
                first = r * gemv.loads * 4
                for plane in gemv.planes:
                    value = self._real(words, first, plane, 4 * part + i)
                    first += plane.width * gemv.columns // 32
                    for row in range(gemv.rows):
                        at, sums = self._sum(r, row, plane.factor), self.acc
                        if own is not None:
                            at, sums = row, own
                        term = kb.reinterpret(kb.load(x, 4 * row + i), "float32")
                        self._fma(sums, at, value, term)
            if own is not None:
                groups = -(-gemv.depth // gemv.group)
                group = tir.tirx.min(column // gemv.group, groups - 1)
                scale = kb.load(self.factors, (self.first + r) * groups + group)
                scale = kb.let(scale, "scale")
                for row in range(gemv.rows):
                    self._fma(self.acc, self._sum(r, row), kb.load(own, row), scale)

    def _fma(self, sums: Any, at: int, a: Any, b: Any) -> None:
        kb = self.kb
        kb.store(sums, at, kb.extern("dlcc_fma", "float32", 1, a, b, kb.load(sums, at)))

    def _real(self, words: Any, first: int, plane: Plane, element: int) -> Any:
        """The number that a code stands for.

        Below the bits of 2^23 a code that starts at bit s counts 2^s; one fused operation, which is
        exact, takes 2^23 off, and 2^s out.
        """
        kb, gemv, width = self.kb, self.gemv, plane.width
        word, place = divmod(element, 32 // width)
        codes, shift = kb.load(words, first + word), place * width
        mask = (1 << width) - 1
        if gemv.kind == "table":
            copies = gemv.copies.bit_length() - 1
            left = kb.const(shift - copies, "int32")
            moved = kb.extern("dlcc_shift", "uint32", 1, codes, left)
            index = tir.tirx.bitwise_and(moved, kb.const(mask << copies, "uint32"))
            index = tir.tirx.bitwise_or(kb.cast(index, "int32"), self.lane % gemv.copies)
            return kb.let(kb.load(self.table, index), "entry")
        lowest = abs(plane.step).bit_length() - 1 if plane.base else 0  # 2^23 and the base fit
        if shift < lowest or shift + width > _MANTISSA:
            codes = kb.extern("dlcc_shift", "uint32", 1, codes, kb.const(shift - lowest, "int32"))
            shift = lowest
        real = kb.extern("dlcc_below", "float32", 1, codes, kb.const(mask << shift, "uint32"))
        unit = plane.step * 2.0**-shift
        least = plane.base - unit * _ONE
        operands = kb.const(unit, "float32"), kb.const(least, "float32")
        return kb.let(kb.extern("dlcc_fma", "float32", 1, real, *operands), "real")

    # -- results --------------------------------------------------------------------------------

    def _reduce(self) -> None:
        """Adds the sums of the threads of an output, in one order; the first stores them."""
        kb, gemv = self.kb, self.gemv
        short = "i32" if gemv.integer else "f32"
        values = []
        for r in range(gemv.each):
            for row in range(gemv.rows):
                value = kb.let(self._own(r, row), "value")
                for distance in (16, 8, 4, 2, 1):
                    if distance < gemv.lanes:
                        other = kb.extern(
                            f"dlcc_exchange_{short}",
                            self.sum_type,
                            1,
                            value,
                            kb.const(distance, "int32"),
                        )
                        value = kb.let(value + kb.let(other, "other"), "value")
                values.append(value)
        warp = self.place * gemv.warps + self.turn
        start = warp * gemv.warp_outputs + self.lane // gemv.lanes * gemv.each
        start = kb.let(start * gemv.rows, "results")
        with kb.when(True if gemv.lanes == 1 else self.column_lane.equal(0)):
            for i, value in enumerate(values):
                kb.store(self.shared, start + i, value)

    def _own(self, r: int, row: int) -> Any:
        """A thread's sum of one output and one row."""
        kb, gemv = self.kb, self.gemv
        first = self._sum(r, row)
        if gemv.kind == "codes" and gemv.integer:
            return self._code_sum(first, row)
        if not gemv.factors:
            return kb.load(self.acc, first)
        total = None
        for factor in range(gemv.factors):
            padded = gemv.tiles * gemv.warp_outputs
            scale = kb.load(self.factors, factor * padded + self.first + r)
            term = kb.load(self.acc, first + factor) * scale
            total = term if total is None else total + kb.let(term, "term")
        return total

    def _code_sum(self, at: int, row: int) -> Any:
        kb, gemv = self.kb, self.gemv
        total = kb.const(0, "int32")
        for plane in gemv.planes:
            for place in range(8 // plane.width if gemv.rows == 1 else 1):
                part = kb.load(self.acc, at)
                if place:
                    shifted = kb.extern(
                        "dlcc_shift",
                        "uint32",
                        1,
                        kb.cast(part, "uint32"),
                        kb.const(place * plane.width, "int32"),
                    )
                    part = kb.cast(shifted, "int32")
                total = total + part * plane.step
                at += 1
            if plane.base:
                total = total + kb.load(self.totals, row) * plane.base
        return total

    def _finish(self) -> None:
        """Adds the warps' parts in order; a thread stores every ``threads``-th result."""
        kb, gemv = self.kb, self.gemv
        outputs = gemv.side * gemv.warp_outputs
        count = outputs * gemv.rows
        with kb.loop(0, -(-count // gemv.threads), "turn") as turn:
            number = kb.let(turn * gemv.threads + kb.thread, "number")
            row, own = kb.let(number // outputs, "row"), kb.let(number % outputs, "own")
            channel = kb.let(kb.block * outputs + own, "channel")
            with kb.when(tir.tirx.all(number < count, channel < gemv.outputs)):
                place, rest = own // gemv.warp_outputs, own % gemv.warp_outputs
                start = kb.let(
                    (place * (gemv.warps * gemv.warp_outputs) + rest) * gemv.rows + row, "start"
                )
                total = kb.load(self.shared, start)
                for warp in range(1, gemv.warps):
                    more = kb.load(self.shared, start + warp * gemv.warp_outputs * gemv.rows)
                    total = kb.let(total + more, "total")
                self._store(total, channel, kb.let(row * gemv.outputs + channel, "index"))

    def _store(self, total: Any, channel: Any, index: Any) -> None:
        kb, at = self.kb, self.at
        if at is None:
            kb.store(self.y, index, total)
            return
        channels = epilogue.Channels(kb.load(at.bias, channel))
        if at.multiplier is not None:
            channels.multiplier = kb.load(at.multiplier, channel)
        if at.ratio is not None:
            channels.ratio = kb.load(at.ratio, channel)
        epilogue.finish(kb, at, channels, total, index, 1, self.gemv.epilogue.out)
