"""Convolution and linear layers of binary activations by binary weights: xor, and counting bits.

With a bit for each negative sign, a sum of products of K signs is K - 2 * popcount(x xor w)
(Rastegari et al. 2016, "XNOR-Net", section 3.2). Words of the activations hold 32 neighbouring
channels (:mod:`sign_words`), and lanes are outputs.

Ways to count. ``count``: vpopcntd, a word of 16 outputs at a time. ``cnt``, ``cnt-dot``: see
:mod:`xnor_neon`. ``table``: bytes are outputs, and a byte's value picks one of 16 entries of the
table that belongs to four channels of x, which holds the popcount for each value of four weights
(``pshufb``: one instruction in the place of the xor and two look-ups of Mula et al. 2018, "Faster
population counts using AVX2 instructions").

Padding counts as 0 in the sum. A padded copy holds zero bits there, that is 1, and what these add
is subtracted again: it depends on which kernel rows and columns lie on padding alone, the *class*
of an output row and column, and is part of the number that the doubled popcount is taken from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, Literal

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa
from targets.kernels.sign_words import (
    WORD,
    RealPointers,
    real_constants,
    real_parameters,
    real_value,
    sign_word,
    words_of,
)
from targets.kernels.skeleton import divide
from targets.kernels.spec import ConvSpec
from targets.kernels.stage import Stage, stage_step
from targets.kernels.xnor_neon import NeonCounter, NeonUnit, Window, word_cycles
from targets.kernels.xnor_pack import (
    BYTES,
    base_of,
    classes_of,
    limits_of,
    pack_counts,
    pack_tables,
    popcount_table,
)

AHEAD = 2048
"""Bytes that weights are fetched ahead of their use."""

CHUNK = 7
"""Words after which sums in bytes are moved on: 7 * 32 <= 255."""

MOST_CHANNELS = 65535
"""Products of a sum that 16 bits count."""

_LOOK_UP = {
    16: "llvm.x86.ssse3.pshuf.b.128",
    32: "llvm.x86.avx2.pshuf.b",
    64: "llvm.x86.avx512.pshuf.b.512",
}


XnorUnit = Literal["count", "table"] | NeonUnit
"""How bits are counted."""


@dataclass(frozen=True)
class Xnor:
    """What determines the code.

    Attributes:
        images: of the batch; ``rows``, ``cols``: of the output.
        image_pitch: words of an image of the (padded) input; ``row_step``, ``col_step``: words from
            one output row or column to the next.
        loops: (count, words between) of the loops over runs.
        run: neighbouring words that are multiplied.
        n: outputs.
        classes: whether the base depends on the place.
        signs: the output is binary.
        residual: float32 numbers are added.
        unit: how bits are counted.
        lanes: 32-bit lanes of a vector.
        pixels: output columns that are computed together; ``vectors``: of outputs, likewise.
    """

    images: int
    rows: int
    cols: int
    image_pitch: int
    row_step: int
    col_step: int
    loops: tuple[tuple[int, int], ...]
    run: int
    n: int
    classes: bool
    signs: bool
    residual: bool
    unit: XnorUnit
    lanes: int
    pixels: int
    vectors: int

    @property
    def arm(self) -> bool:
        """Whether it is NEON that counts."""
        return self.unit in ("cnt", "cnt-dot")

    @property
    def width(self) -> int:
        """Outputs of a vector."""
        return self.lanes * (BYTES if self.unit == "table" else 1)

    @property
    def group(self) -> int:
        """Outputs that are computed together."""
        return self.vectors * self.width

    @property
    def groups(self) -> int:
        """Groups of outputs."""
        return ceil(self.n / self.group)

    @property
    def runs(self) -> int:
        """Runs of a window."""
        return int(np.prod([count for count, _ in self.loops]))

    @property
    def items(self) -> int:
        """Work items: a group of outputs of an output row."""
        return self.groups * self.images * self.rows


@dataclass
class _Pointers:
    x: Any
    weight: Any
    table: Any
    base: Any
    row_class: Any
    col_class: Any
    real: RealPointers | None
    y: Any


class _Emitter:
    """Emits one function."""

    def __init__(self, name: str, kernel: Xnor) -> None:
        self.kb, self.kernel = tir.KernelBuilder(name), kernel
        kb, by_table = self.kb, kernel.unit == "table"
        self.at = _Pointers(
            kb.pointer("x", "int32", align=4),
            kb.pointer("weight", "int8" if by_table else "int32"),
            kb.pointer("table", "int8") if by_table else None,
            kb.pointer("base", "int32"),
            kb.pointer("row_class", "int32") if kernel.classes else None,
            kb.pointer("col_class", "int32") if kernel.classes else None,
            None if kernel.signs else real_parameters(kb, kernel.residual),
            kb.pointer("y", "int32" if kernel.signs else "float32", align=4),
        )

    def function(self) -> Any:
        """The PrimFunc."""
        kb, kernel = self.kb, self.kernel
        whole, rest = divmod(kernel.n, kernel.group)
        with kb.loop(kb.begin, kb.end, "item") as item:
            group, line = divide(kb, item, kernel.images * kernel.rows, "line")
            image, row = divide(kb, line, kernel.rows, "row")
            start = kb.let(image * kernel.image_pitch + row * kernel.row_step, "start")
            place = 0
            if kernel.classes:
                place = kb.let(kb.load(self.at.row_class, row), "class")
            for inside, outputs in ((group < whole, kernel.group), (group >= whole, rest)):
                if outputs and (whole or outputs == rest):
                    with kb.when(inside if whole and rest else True):
                        self._columns(group, line, start, place, outputs)
        return kb.build()

    def _columns(self, group: Any, line: Any, start: Any, place: Any, outputs: int) -> None:
        """All columns of a row, some at a time."""
        kb, kernel = self.kb, self.kernel
        whole, rest = divmod(kernel.cols, kernel.pixels)
        if whole:
            with kb.loop(0, whole, "block") as block:
                first = kb.let(block * kernel.pixels, "col")
                self._block(group, line, start, place, first, kernel.pixels, outputs)
        if rest:
            first = kb.const(whole * kernel.pixels, "int32")
            self._block(group, line, start, place, first, rest, outputs)

    def _block(
        self, group: Any, line: Any, start: Any, place: Any, col: Any, pixels: int, outputs: int
    ) -> None:
        kb, kernel = self.kb, self.kernel
        made = words_of(outputs) * WORD if kernel.signs else outputs
        vectors = ceil(made / kernel.width)
        sources = [
            kb.let(start + (col + pixel) * kernel.col_step, "source") for pixel in range(pixels)
        ]
        body = {"count": self._count, "table": self._look_up}.get(kernel.unit, self._count_bytes)
        counts = body(group, sources, vectors)
        for pixel, found in enumerate(counts):
            here = place
            if kernel.classes:
                here = kb.let(place + kb.load(self.at.col_class, col + pixel), "class")
            index = kb.let(line * kernel.cols + col + pixel, "pixel")
            self._finish(found, group, here, index, outputs)

    # -- counting ------------------------------------------------------------------------------

    def _runs(self, group: Any, sources: list[Any], body: Any) -> None:
        """The loops over runs: ``body(words of x, first word of the weights)``."""
        kb, kernel = self.kb, self.kernel
        (rows, down), (cols, right) = (*kernel.loops, (1, 0))[:2]
        with kb.loop(0, rows, "tap") as i, kb.loop(0, cols, "tap") as j:
            shift = kb.let(i * down + j * right, "shift")
            run = kb.let((group * kernel.runs + i * cols + j) * kernel.run, "run")
            body([kb.let(source + shift, "at") for source in sources], run)

    def _count(self, group: Any, sources: list[Any], vectors: int) -> list[list[Any]]:
        """Popcounts of each pixel, as vectors of ``lanes`` outputs."""
        kb, kernel, lanes = self.kb, self.kernel, self.kernel.lanes
        acc = kb.alloc("int32", len(sources) * vectors * lanes)
        for i in range(len(sources) * vectors):
            kb.store(acc, i * lanes, kb.const(0, "int32", lanes))

        def body(starts: list[Any], run: Any) -> None:
            with kb.loop(0, kernel.run, "word") as word:
                at = kb.let((run + word) * (kernel.vectors * lanes), "at")
                self._fetch(at, kernel.vectors * lanes * 4)
                weights = [
                    kb.let(kb.load(self.at.weight, at + v * lanes, lanes), "w")
                    for v in range(vectors)
                ]
                for pixel, start in enumerate(starts):
                    x = kb.let(kb.splat(kb.load(self.at.x, start + word), lanes), "x")
                    for v, weight in enumerate(weights):
                        place = (pixel * vectors + v) * lanes
                        differ = tir.tirx.bitwise_xor(x, weight)
                        count = kb.pure("llvm.ctpop", "int32", lanes, differ)
                        kb.store(acc, place, kb.load(acc, place, lanes) + count)

        self._runs(group, sources, body)
        return [
            [kb.load(acc, (pixel * vectors + v) * lanes, lanes) for v in range(vectors)]
            for pixel in range(len(sources))
        ]

    def _count_bytes(self, group: Any, sources: list[Any], vectors: int) -> list[list[Any]]:
        """As :meth:`_count`, on NEON."""
        kb, kernel = self.kb, self.kernel
        assert kernel.unit in ("cnt", "cnt-dot")
        rows, cols = (*kernel.loops, (1, 0))[:2]
        window = Window((rows, cols), kernel.run, kernel.vectors)
        first = kb.let(group * (kernel.runs * kernel.run * kernel.group), "weights")
        memory = (self.at.x, self.at.weight)
        return NeonCounter(kb, kernel.unit, window, memory, sources, first, vectors).counts()

    def _fetch(self, at: Any, size: int) -> None:
        """Asks for weights some steps later, where they are read once."""
        if self.kernel.images * self.kernel.rows * self.kernel.cols == 1:
            item = 1 if self.kernel.unit == "table" else 4
            for line in range(0, size, 64):
                self.kb.prefetch(self.at.weight, at + (AHEAD + line) // item, level=1)

    def _look_up(self, group: Any, sources: list[Any], vectors: int) -> list[list[Any]]:
        """As :meth:`_count`, by tables."""
        kb, kernel, size = self.kb, self.kernel, self.kernel.width
        sums, half = len(sources) * vectors, size // 2
        wide = kb.alloc("uint16", 2 * sums * half)
        for i in range(2 * sums):
            kb.store(wide, i * half, kb.const(0, "uint16", half))

        def chunk(starts: list[Any], run: Any, first: Any, words: int) -> None:
            acc = kb.alloc("int8", sums * size)
            for i in range(sums):
                kb.store(acc, i * size, kb.const(0, "int8", size))
            with kb.loop(0, words, "word") as word:
                self._word(acc, starts, run, kb.let(first + word, "at"), vectors)
            for i in range(sums):
                pairs = kb.reinterpret(kb.load(acc, i * size, size), "uint16", half)
                pairs = kb.let(pairs, "pairs")
                low = tir.tirx.bitwise_and(pairs, kb.const(255, "uint16", half))
                high = tir.tirx.shift_right(pairs, kb.const(8, "uint16", half))
                for part, value in enumerate((low, high)):
                    place = (2 * i + part) * half
                    kb.store(wide, place, kb.load(wide, place, half) + value)

        def body(starts: list[Any], run: Any) -> None:
            whole, rest = divmod(kernel.run, CHUNK)
            if whole:
                with kb.loop(0, whole, "chunk") as index:
                    chunk(starts, run, kb.let(index * CHUNK, "first"), CHUNK)
            if rest:
                chunk(starts, run, kb.const(whole * CHUNK, "int32"), rest)

        self._runs(group, sources, body)
        return [self._widened(wide, pixel * vectors, vectors) for pixel in range(len(sources))]

    def _widened(self, wide: Any, first: int, vectors: int) -> list[Any]:
        """Sums of 16 bits as vectors of ``lanes`` int32, in the order of outputs."""
        kb, lanes, half = self.kb, self.kernel.lanes, self.kernel.width // 2
        made = []
        for i in range(2 * first, 2 * (first + vectors)):
            value = kb.let(kb.load(wide, i * half, half), "sums")
            for part in range(0, half, lanes):
                piece = kb.shuffle(value, range(part, part + lanes))
                made.append(kb.let(kb.cast(piece, "int32"), "sums"))
        return made

    def _word(self, acc: Any, starts: list[Any], run: Any, word: Any, vectors: int) -> None:
        """Four bytes of channels: two look-ups for each."""
        kb, kernel, size = self.kb, self.kernel, self.kernel.width
        words = [kb.let(kb.load(self.at.x, start + word), "x") for start in starts]
        fifteen = kb.const(15, "int8", size)
        for byte in range(BYTES):
            at = kb.let(((run + word) * BYTES + byte) * (kernel.vectors * size), "at")
            self._fetch(at, kernel.vectors * size)
            nibbles = []
            for v in range(vectors):
                packed = kb.let(kb.load(self.at.weight, at + v * size, size), "w")
                pairs = kb.reinterpret(packed, "uint16", size // 2)
                high = tir.tirx.shift_right(pairs, kb.const(4, "uint16", size // 2))
                high = kb.reinterpret(high, "int8", size)
                parts = (packed, high)
                nibbles.append([kb.let(tir.tirx.bitwise_and(p, fifteen), "w") for p in parts])
            for pixel, value in enumerate(words):
                for half in range(2):
                    table = self._table(value, 8 * byte + 4 * half)
                    for v in range(vectors):
                        place = (pixel * vectors + v) * size
                        found = kb.pure(_LOOK_UP[size], "int8", size, table, nibbles[v][half])
                        kb.store(acc, place, kb.load(acc, place, size) + found)

    def _table(self, word: Any, low: int) -> Any:
        """The table of four channels of x from bit ``low`` of a word."""
        kb, size = self.kb, self.kernel.width
        shifted = tir.tirx.shift_right(word, kb.const(low, "int32")) if low else word
        entry = tir.tirx.bitwise_and(shifted, kb.const(15, "int32"))
        return kb.let(kb.load(self.at.table, entry * size, size), "table")

    # -- results -------------------------------------------------------------------------------

    def _finish(self, counts: list[Any], group: Any, place: Any, pixel: Any, outputs: int) -> None:
        """The epilogue of one pixel; ``place``: where the numbers of its class start."""
        kb, kernel, lanes = self.kb, self.kernel, self.kernel.lanes
        first = kb.let(group * kernel.group, "output")
        if kernel.signs:
            self._signs(counts, first, place, pixel, outputs)
            return
        assert self.at.real is not None
        for v in range(ceil(outputs / lanes)):
            channel, count = kb.let(first + v * lanes, "channel"), min(lanes, outputs - v * lanes)
            base = kb.load(self.at.base, place + channel, lanes)
            sums = base - counts[v] - counts[v]
            index = kb.let(pixel * kernel.n + channel, "index")
            real = kb.cast(sums, "float32")
            value = real_value(kb, self.at.real, real, channel, index, count)
            kb.store_first(self.at.y, index, value, count)

    def _signs(self, counts: list[Any], first: Any, place: Any, pixel: Any, outputs: int) -> None:
        kb, kernel, lanes = self.kb, self.kernel, self.kernel.lanes
        at = kb.let(pixel * words_of(kernel.n) + tir.tirx.truncdiv(first, WORD), "word")
        for word in range(words_of(outputs)):
            vectors = []
            for v in range(word * WORD // lanes, (word + 1) * WORD // lanes):
                limit = kb.load(self.at.base, place + first + v * lanes, lanes)
                vectors.append(kb.let(limit - counts[v], "sign"))
            kb.store(self.at.y, at + word, sign_word(kb, vectors, arm=kernel.arm))


def xnor_function(name: str, kernel: Xnor) -> Any:
    """The PrimFunc.

    Parameters: x, weight, table (where there is one), base, classes of rows and columns (where they
    differ), those of :func:`sign_words.real_parameters` (for a float32 output), y.
    """
    return _Emitter(name, kernel).function()


def refusal(spec: ConvSpec) -> str:
    """Why the kernel cannot take a layer; "" if it can."""
    if spec.groups != 1:
        return f"the convolution has {spec.groups} groups"
    if spec.c * spec.kh * spec.kw > MOST_CHANNELS:
        return f"sums of {spec.c * spec.kh * spec.kw} products may leave 16 bits"
    return ""


def _stage(spec: ConvSpec) -> Stage | None:
    """The padded copy, of words."""
    if not any(spec.pads):
        return None
    words, (height, width) = words_of(spec.c), spec.padded
    top, left = spec.pads[:2]
    return Stage(spec.n, spec.h, spec.w, words, height, width, top, left, (1, 1), "f32", "f32")


def _unit(isa: Isa) -> XnorUnit:
    if isa.arch != "x86":
        return "cnt" if isa.dot == "mlal" else "cnt-dot"
    return "count" if isa.bit_counts else "table"


def _kernel(spec: ConvSpec, isa: Isa, signs: bool) -> Xnor:
    words, (_, width) = words_of(spec.c), spec.padded
    down, right = spec.dilation[0] * width * words, spec.dilation[1] * words
    whole = spec.dilation[1] == 1 or spec.kw == 1
    loops = ((spec.kh, down),) if whole else ((spec.kh, down), (spec.kw, right))
    unit = _unit(isa)
    pixels, vectors = min(4, spec.ow), 4 if isa.registers > 16 else 2
    if unit not in ("count", "table"):  # 8 vectors are a word of signs
        pixels, vectors = min(isa.registers // 16, spec.ow), 8
    if pixels == 1 and unit == "count":
        vectors = 8
    outputs = isa.lanes * (BYTES if unit == "table" else 1)
    vectors = min(vectors, max(ceil(spec.oc / outputs), ceil(WORD / outputs)))
    vectors += vectors * outputs % WORD // outputs  # of whole words
    return Xnor(
        spec.n,
        spec.oh,
        spec.ow,
        spec.padded[0] * width * words,
        spec.stride[0] * width * words,
        spec.stride[1] * words,
        loops,
        words * (spec.kw if whole else 1),
        spec.oc,
        any(spec.pads),
        signs,
        spec.epilogue.residual is not None,
        unit,
        isa.lanes,
        pixels,
        vectors,
    )


def xnor_cost(spec: ConvSpec, isa: Isa, signs: bool) -> float:
    """Predicted seconds of :func:`xnor` on one thread."""
    kernel = _kernel(spec, isa, signs)
    words = kernel.runs * kernel.run
    lines = kernel.groups * kernel.images * kernel.rows * kernel.cols
    if kernel.arm:
        each = word_cycles(kernel.pixels, kernel.vectors)
    elif kernel.unit == "count":
        each = kernel.vectors * (1.3 + 0.4 / kernel.pixels) + 0.1
    else:
        ports = 2.0 if isa.lanes == 16 else 3.0
        each = BYTES * (kernel.vectors * (4.0 + 3.0 / kernel.pixels) + 2.0) / ports
    outputs = kernel.vectors * kernel.width / kernel.lanes
    cycles = lines * (words * each + outputs * (2.0 if signs else 5.0) + 10.0)
    stage = _stage(spec)
    return max(cycles / CLOCK, isa.read_seconds(kernel.groups * kernel.group * words * 4)) + (
        stage.seconds if stage else 0.0
    )


@dataclass(frozen=True)
class BinaryLayer:
    """Constants of a layer of binary activations.

    Attributes:
        negative: whether a weight is below 0, bool ``[oc, c, kh, kw]``.
        multiplier: real value of 1 of the sums, float32 ``[oc]``.
        bias: float32 ``[oc]``.
        signs: the output is binary.
    """

    spec: ConvSpec
    negative: np.ndarray
    multiplier: np.ndarray
    bias: np.ndarray
    signs: bool


def xnor(layer: BinaryLayer, isa: Isa) -> KernelPlan:
    """Plans a convolution or linear layer; a residual is input 1."""
    spec = layer.spec
    kernel = _kernel(spec, isa, layer.signs)
    padded = kernel.groups * kernel.group
    pack = pack_tables if kernel.unit == "table" else pack_counts
    base = base_of(spec, layer.negative)
    constants = {"weight": pack(layer.negative, kernel.width, kernel.vectors)}
    if kernel.unit == "table":
        constants["table"] = popcount_table(kernel.width)
    if kernel.classes:
        rows, cols, _ = classes_of(spec)
        constants["row_class"] = (rows * (cols.max() + 1) * padded).astype(np.int32)
        constants["col_class"] = (cols * padded).astype(np.int32)
    if layer.signs:
        constants["base"] = limits_of(layer.multiplier, layer.bias, spec, base, padded)
    else:
        constants["base"] = np.pad(base, ((0, 0), (0, padded - spec.oc))).astype(np.int32)
        constants |= real_constants(spec.epilogue, layer.multiplier, layer.bias, padded)
    steps: list[KernelStep] = []
    source: KernelArg = ("in", 0)
    stage = _stage(spec)
    if stage is not None:
        constants["fill"] = np.zeros(1, np.float32)
        steps.append(stage_step(stage, isa, source, "fill", 0))
        source = ("scratch", 0)
    names = ["weight", *(["table"] if kernel.unit == "table" else []), "base"]
    names += ["row_class", "col_class"] if kernel.classes else []
    names += [] if layer.signs else ["multiplier", "bias", "limits"]
    args: list[KernelArg] = [source, *(("const", name) for name in names)]
    args += [("in", 1)] if kernel.residual else []
    key = name_key(f"xnor_{kernel.unit}", kernel)
    build = partial(xnor_function, key, kernel)
    steps.append(KernelStep(key, build, (*args, ("out", 0)), kernel.items))
    return KernelPlan(
        tuple(steps),
        constants,
        scratch=(stage.bytes,) if stage else (),
        features=isa.vector_flags(),
        kernel=f"xnor-{kernel.unit} {kernel.pixels}x{kernel.vectors}",
        compressed=True,
    )


__all__ = ["BinaryLayer", "refusal", "xnor", "xnor_cost", "xnor_function"]
