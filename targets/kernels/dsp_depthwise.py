"""Depthwise convolution of 8-bit codes by the DSP instructions of Cortex-M.

One channel at a time is copied out of the image into a plane of 16-bit numbers, centred on the zero
point and with a border of zeros. There neighbouring pixels are neighbours in a word, so that one
``smlad`` multiplies two taps of a kernel row at once; what is left over takes half a word
(``smlabt`` and its like). A channel's weights stay in registers for all its pixels.

Outputs replace nothing that is still to be read: they go where the channel's own inputs were, which
are in the plane by then. Input and output may be the same buffer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, Overlap, name_key
from targets.kernels.dsp import LOADS, load, turned
from targets.kernels.packed_bits import Codes
from targets.kernels.scalar_epilogue import Finish
from targets.kernels.spec import NUMPY, SIZE, ConvSpec

TAPS = 8
"""Weights of four bits in a word."""


@dataclass(frozen=True)
class DspDepthwise:
    """What determines the code: the layer's shape, and whether taps have four bits or eight."""

    spec: ConvSpec
    packed: bool = False

    @property
    def outputs(self) -> int:
        """Neighbouring outputs computed at a time: so many that their windows start at words."""
        return 1 if self.spec.stride[1] % 2 == 0 else 2

    @property
    def steps(self) -> int:
        """Groups of outputs of a row."""
        return -(-self.spec.ow // self.outputs)

    @property
    def pitch(self) -> int:
        """Words of a row of the plane."""
        spec = self.spec
        reach = (self.steps * self.outputs - 1) * spec.stride[1]
        reach += (spec.kw - 1) * spec.dilation[1] + 1
        return -(-max(reach, spec.pads[1] + spec.w) // 2)

    @property
    def rows(self) -> int:
        """Rows of the plane."""
        spec = self.spec
        reach = (spec.oh - 1) * spec.stride[0] + (spec.kh - 1) * spec.dilation[0] + 1
        return max(reach, spec.pads[0] + spec.h)

    @property
    def row_words(self) -> int:
        """Words of weights of a kernel row."""
        return max(1, self.spec.kw // 2)

    @property
    def tap_words(self) -> int:
        """Words of a channel's weights."""
        if self.packed:
            return -(-self.spec.kh * self.spec.kw // TAPS)
        return self.spec.kh * self.row_words

    @property
    def stream_words(self) -> int:
        """Words of a channel: weights, bias, multiplier, ratio of the residual."""
        return self.tap_words + (3 if self.spec.epilogue.residual else 2)


def dsp_depthwise(
    spec: ConvSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    ratio: np.ndarray | None,
    *,
    packed: bool = False,
) -> KernelPlan:
    """The plan of a depthwise convolution.

    Args:
        spec: u8 activations, one channel a group.
        weights: int8[c, 1, kh, kw].
        bias: int32[c].
        multiplier: float32[c].
        ratio: float32[c], of a residual.
        packed: the weights have at most four bits, and are stored in as many.
    """
    layer = DspDepthwise(replace(spec, input_slack=True), packed)
    key = name_key("dsp_depthwise", layer)
    args: list[KernelArg] = [("in", 0), ("const", "stream")]
    if spec.epilogue.residual:
        args.append(("in", 1))
    args += [("out", 0), ("scratch", 0)]
    step = KernelStep(key, partial(depthwise_function, key, layer), tuple(args), spec.c)
    stream = _stream(layer, weights[:, 0], bias, multiplier, ratio)
    inputs = range(2 if spec.epilogue.residual else 1)
    fits = SIZE[spec.epilogue.out] == 1 and (spec.n == 1 or (spec.oh, spec.ow) == (spec.h, spec.w))
    return KernelPlan(
        (step,),
        {"stream": stream},
        (4 * layer.pitch * layer.rows,),
        overlaps={i: Overlap(exact=True) for i in inputs if fits},
        compressed=packed,
        kernel=f"smlad over a plane, {'4 bits, ' if packed else ''}{layer.outputs} outputs",
    )


def instructions(layer: DspDepthwise) -> float:
    """Instructions of a layer, roughly."""
    spec = layer.spec
    taps = spec.kh * spec.kw
    inner = layer.outputs * (taps + 11) + spec.kh * (spec.kw + 1)
    return spec.c * spec.n * (layer.steps * spec.oh * inner + 5 * spec.h * spec.w)


def _stream(
    layer: DspDepthwise,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    ratio: np.ndarray | None,
) -> np.ndarray:
    """int32[c, words]: the taps, then the other terms."""
    parts = [_packed_taps(layer, weights) if layer.packed else _tap_words(layer, weights)]
    parts += [bias.astype(np.int32)[:, None], multiplier.astype(np.float32).view(np.int32)[:, None]]
    if layer.spec.epilogue.residual and ratio is not None:
        parts.append(ratio.astype(np.float32).view(np.int32)[:, None])
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _tap_words(layer: DspDepthwise, weights: np.ndarray) -> np.ndarray:
    """Taps t, t + 1, t + 1, t + 2 of a row in a word, for even t."""
    channels, kh, kw = weights.shape
    padded = np.zeros((channels, kh, 2 * layer.row_words + 1), np.int8)
    padded[:, :, :kw] = weights
    starts = 2 * np.arange(layer.row_words)
    words = padded[:, :, starts[:, None] + np.array([0, 1, 1, 2])]
    return np.ascontiguousarray(words).reshape(channels, -1).view(np.int32)


def _packed_taps(layer: DspDepthwise, weights: np.ndarray) -> np.ndarray:
    """Eight taps in a word, the first in its lowest bits.

    Raises:
        ValueError: a weight has more than four bits.
    """
    channels = len(weights)
    taps = Codes.signed(4).unsigned(weights.reshape(channels, -1)) ^ np.uint8(8)
    full = np.zeros((channels, layer.tap_words * TAPS), np.uint32)
    full[:, : taps.shape[1]] = taps
    fields = full.reshape(channels, -1, TAPS) << (4 * np.arange(TAPS, dtype=np.uint32))
    return np.asarray(np.bitwise_or.reduce(fields, axis=2), np.uint32).view(np.int32)


def depthwise_function(name: str, layer: DspDepthwise) -> Any:
    """The kernel: parameters x, stream, [residual], y, plane. Items: channels.

    Buffers of input and output may be the same.
    """
    window = window_llvm(layer) if in_registers(layer) else ""
    kb = tir.KernelBuilder(name, llvm=LOADS + window)
    spec = layer.spec
    x = kb.pointer("x", "uint8", align=1)
    stream = kb.pointer("stream", "int32", align=4)
    residual = kb.pointer("residual", "uint8", align=1) if spec.epilogue.residual else None
    y = kb.pointer("y", NUMPY[spec.epilogue.out], align=4 if spec.epilogue.out == "f32" else 1)
    plane = kb.pointer("plane", "int16", align=4)
    finish = Finish(kb, spec.epilogue, y, residual)
    with kb.loop(0, 2 * layer.pitch * layer.rows, "number") as number:
        kb.store(plane, number, kb.const(0, "int16"))
    with kb.loop(kb.begin, kb.end, "channel") as channel, kb.loop(0, spec.n, "image") as image:
        _copy(kb, layer, x, plane, kb.let(image * (spec.h * spec.w * spec.c) + channel, "from"))
        channel_terms = _load_terms(kb, layer, stream, channel)
        outputs = kb.let(image * (spec.oh * spec.ow * spec.c) + channel, "to")
        with kb.loop(0, spec.oh, "row") as row:
            start = kb.let(row * (spec.stride[0] * layer.pitch), "start")
            to = kb.let(outputs + row * (spec.ow * spec.c), "to")
            _row(kb, layer, plane, finish, channel_terms, start, to)
    return kb.build().without_attr("tirx.noalias")


def _copy(kb: Any, layer: DspDepthwise, x: Any, plane: Any, source: Any) -> None:
    """One channel of an image into the plane."""
    spec = layer.spec
    with kb.loop(0, spec.h, "row") as row:
        start = kb.let(source + row * (spec.w * spec.c), "from")
        to = kb.let((row + spec.pads[0]) * (2 * layer.pitch) + spec.pads[1], "to")
        with kb.loop(0, spec.w, "column") as column:
            code = load(kb, "byte", x, start + column * spec.c)
            if spec.in_zero_point:
                code = code - kb.const(spec.in_zero_point, "int32")
            kb.store(plane, to + column, kb.cast(code, "int16"))


@dataclass
class _Terms:
    """A channel's constants: pairs of neighbouring taps by kernel row and first tap."""

    taps: list[list[Any]]
    bias: Any
    multiplier: Any
    ratio: Any = None


def _load_terms(kb: Any, layer: DspDepthwise, stream: Any, channel: Any) -> _Terms:
    spec = layer.spec
    base = kb.let(channel * layer.stream_words, "base")
    taps = _unpacked(kb, layer, stream, base) if layer.packed else _taps(kb, layer, stream, base)
    tail = base + layer.tap_words
    bias = kb.let(kb.load(stream, tail), "bias")
    multiplier = kb.let(kb.reinterpret(kb.load(stream, tail + 1), "float32"), "multiplier")
    ratio = None
    if spec.epilogue.residual:
        ratio = kb.let(kb.reinterpret(kb.load(stream, tail + 2), "float32"), "ratio")
    return _Terms(taps, bias, multiplier, ratio)


def _taps(kb: Any, layer: DspDepthwise, stream: Any, base: Any) -> list[list[Any]]:
    """Pairs of neighbouring taps by kernel row, from bytes."""
    taps = []
    for ky in range(layer.spec.kh):
        pairs = []
        for i in range(layer.row_words):
            word = kb.let(kb.load(stream, base + ky * layer.row_words + i), "word")
            for value in (word, turned(kb, word)):
                pairs.append(kb.let(kb.pure("llvm.arm.sxtb16", "int32", 1, value), "taps"))
        taps.append(pairs)
    return taps


def _unpacked(kb: Any, layer: DspDepthwise, stream: Any, base: Any) -> list[list[Any]]:
    """The same from four bits: a tap is a signed field of a word (``sbfx``)."""
    kw = layer.spec.kw
    words = [kb.let(kb.load(stream, base + i), "word") for i in range(layer.tap_words)]

    def tap(ky: int, kx: int) -> Any:
        if kx >= kw:
            return kb.const(0, "int32")
        word, at = divmod(ky * kw + kx, TAPS)
        upper = tir.tirx.shift_left(words[word], kb.const(28 - 4 * at, "int32"))
        return kb.let(tir.tirx.shift_right(upper, kb.const(28, "int32")), "tap")

    taps = []
    for ky in range(layer.spec.kh):
        row = [tap(ky, kx) for kx in range(2 * layer.row_words + 1)]
        pairs = []
        for low, high in pairwise(row):
            lower = tir.tirx.bitwise_and(low, kb.const(0xFFFF, "int32"))
            upper = tir.tirx.shift_left(high, kb.const(16, "int32"))
            pairs.append(kb.let(tir.tirx.bitwise_or(lower, upper), "taps"))
        taps.append(pairs)
    return taps


def _row(
    kb: Any, layer: DspDepthwise, plane: Any, finish: Finish, terms: _Terms, start: Any, to: Any
) -> None:
    """One row of outputs of a channel."""
    spec, outputs = layer.spec, layer.outputs
    with kb.loop(0, layer.steps, "step") as step:
        first = kb.let(start + step * (outputs * spec.stride[1] // 2), "first")
        if in_registers(layer):
            totals = _window(kb, layer, plane, terms, first)
        else:
            totals = _sums(kb, layer, plane, terms, first)
        for u, total in enumerate(totals):
            column = step * outputs + u
            whole = spec.ow % outputs == 0 or u == 0
            with kb.when(True if whole else kb.let(column, "column") < spec.ow):
                at = to + column * spec.c
                finish.store(total, terms.multiplier, terms.ratio, at)


def _sums(kb: Any, layer: DspDepthwise, plane: Any, terms: _Terms, first: Any) -> list[Any]:
    """Sums of a step's outputs, whose windows begin at word ``first``."""
    spec, totals = layer.spec, [terms.bias] * layer.outputs
    for ky in range(spec.kh):
        words: dict[int, Any] = {}
        for u in range(layer.outputs):
            for index, pair, form in _products(layer, u):
                if index not in words:
                    at = first + ky * spec.dilation[0] * layer.pitch + index
                    words[index] = load(kb, "word", plane, 2 * at)
                taps = terms.taps[ky][pair]
                total = kb.pure(f"llvm.arm.smla{form}", "int32", 1, words[index], taps, totals[u])
                totals[u] = kb.let(total, "total")
    return totals


REGISTERS = 12
"""That a window may take; two are left to the loop around it."""


def in_registers(layer: DspDepthwise) -> bool:
    """Whether a step's windows are two words wide, and fit the registers with all taps."""
    spec = layer.spec
    words = {index for u in range(layer.outputs) for index, _, _ in _products(layer, u)}
    taps = 2 * layer.row_words * spec.kh
    reach = 4 * (spec.kh - 1) * spec.dilation[0] * layer.pitch
    fits = 2 + layer.outputs + 2 + taps <= REGISTERS and reach <= MOST_OFFSET
    return words == {0, 1} and fits


MOST_OFFSET = 1020
"""Bytes from a register that ``ldrd`` reaches."""


def window_name(layer: DspDepthwise) -> str:
    """Name of the function of :func:`window_llvm`, which the shape of the window determines."""
    spec = layer.spec
    step = layer.pitch * spec.dilation[0]
    return f"dlcc_window_{spec.kh}x{spec.kw}_{layer.outputs}x{spec.stride[1]}_{step}"


def window_llvm(layer: DspDepthwise) -> str:
    """LLVM IR of ``<outputs x i32> name(ptr first, i32 taps..., i32 bias)``.

    Written as instructions, for the compiler spills taps rather than loading pixels again.
    """
    spec, outputs = layer.spec, layer.outputs
    pairs = 2 * layer.row_words
    sums = [f"${u}" for u in range(outputs)]
    words = [f"${outputs}", f"${outputs + 1}"]
    first, taps = outputs + 2, outputs + 3
    bias = f"${taps + pairs * spec.kh}"
    lines = []
    for ky in range(spec.kh):
        offset = 4 * ky * spec.dilation[0] * layer.pitch
        lines.append(f"ldrd {words[0]}, {words[1]}, [${first}, #{offset}]")
        for u, total in enumerate(sums):
            for number, (index, pair, form) in enumerate(_products(layer, u)):
                start = bias if ky == 0 and number == 0 else total
                weight = f"${taps + pairs * ky + pair}"
                lines.append(f"smla{form} {total}, {words[index]}, {weight}, {start}")
    count = pairs * spec.kh + 1
    given = ", ".join(["ptr %p", *(f"i32 %v{i}" for i in range(count))])
    result = "{ " + ", ".join(["i32"] * (outputs + 2)) + " }"
    constraints = ",".join(["=&r"] * (outputs + 2) + ["r"] * (count + 1) + ["~{memory}"])
    code = "\\0A".join(lines)
    body = [
        f"define <{outputs} x i32> @{window_name(layer)}({given}) alwaysinline {{",
        f'  %r = call {result} asm sideeffect "{code}", "{constraints}"({given})',
    ]
    last = "poison"
    for u in range(outputs):
        body.append(f"  %e{u} = extractvalue {result} %r, {u}")
        body.append(f"  %w{u} = insertelement <{outputs} x i32> {last}, i32 %e{u}, i32 {u}")
        last = f"%w{u}"
    return "\n".join([*body, f"  ret <{outputs} x i32> {last}", "}", ""])


def _window(kb: Any, layer: DspDepthwise, plane: Any, terms: _Terms, first: Any) -> list[Any]:
    """:func:`_sums` by the function of :func:`window_llvm`."""
    taps = [pair for row in terms.taps for pair in row]
    address = kb.address(plane, 2 * first)
    made = kb.extern(window_name(layer), "int32", layer.outputs, address, *taps, terms.bias)
    made = kb.let(made, "sums")
    if layer.outputs == 1:
        return [made]
    return [kb.let(kb.shuffle(made, [u]), "total") for u in range(layer.outputs)]


def _products(layer: DspDepthwise, output: int) -> list[tuple[int, int, str]]:
    """What one output of a step takes of a kernel row: word of the plane, taps, instruction.

    Taps are the number of a pair of neighbouring ones.
    """
    spec, tap = layer.spec, 0
    made: list[tuple[int, int, str]] = []
    while tap < spec.kw:
        column = output * spec.stride[1] + tap * spec.dilation[1]
        word, half = divmod(column, 2)
        if half == 0 and tap + 1 < spec.kw and spec.dilation[1] == 1:
            made.append((word, tap, "d"))
            tap += 2
            continue
        pair = min(tap, 2 * layer.row_words - 1)
        made.append((word, pair, ("b", "t")[half] + ("b" if pair == tap else "t")))
        tap += 1
    return made
