"""Convolutions on a GPU whose threads make some channels of some pixels of a row each.

Channels lie innermost, so neighbouring ones are read and written by one instruction, and the
threads of a warp read one stretch of memory. What a thread has read of an input row it uses for all
its pixels. Threads have nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelPlan, KernelStep, name_key
from dlcc.program import Launch
from targets.kernels import epilogue, grid_lanes
from targets.kernels.direct import layer_arguments, shared_epilogue
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.kernels.spec import FLOATS, NUMPY, SIZE, ConvSpec

THREADS = 128
"""Threads of a block."""

_REGISTERS = 65536
"""Of a multiprocessor; ``_OWN`` of a thread are for addresses and what the compiler needs."""

_OWN = 32
_MOST_RESIDENT = 2048
"""Threads of a multiprocessor at a time."""

_OPERATIONS = 64
"""Integer operations of a multiprocessor in a cycle; of floats it is twice that on some."""

_FIRST_CYCLES = 1000
"""Until the first numbers are there, and to store results."""

_OPERATION_CYCLES = 2
"""Of a thread for one operation among many that do not wait for each other."""

_CODE_OPERATIONS = 16
"""Of the epilogue; conversions count fourfold."""

_REAL_OPERATIONS = 5


@dataclass(frozen=True)
class Share:
    """What a thread makes: ``channels``, a multiple of 4, of ``pixels`` of a row."""

    channels: int
    pixels: int


@dataclass(frozen=True)
class Work:
    """What a row of taps takes of a thread.

    Attributes:
        operations: instructions.
        registers: words that it holds.
    """

    operations: int
    registers: int


def threads_of(spec: ConvSpec, share: Share) -> int:
    """Threads of a layer."""
    return spec.n * spec.oh * -(-spec.ow // share.pixels) * (spec.oc // share.channels)


def predicted(spec: ConvSpec, share: Share, work: Work, machine: Machine) -> float:
    """Seconds."""
    threads, made = threads_of(spec, share), share.channels * share.pixels
    finish = _CODE_OPERATIONS if spec.in_dtype == "u8" else _REAL_OPERATIONS
    operations = spec.kh * work.operations + made * finish
    together = threads * operations / (machine.multiprocessors * _OPERATIONS)
    resident = min(_MOST_RESIDENT, _REGISTERS // (_OWN + made + work.registers))
    waves = -(-threads // (machine.multiprocessors * resident))
    alone = waves * (_FIRST_CYCLES + operations * _OPERATION_CYCLES)
    read = spec.h * spec.w * spec.c * SIZE[spec.stored or spec.in_dtype]
    moved = spec.n * (read + spec.oh * spec.ow * spec.oc * SIZE[spec.epilogue.out])
    seconds = max(max(together, alone) / machine.clock, moved / machine.memory)
    return LAUNCH_SECONDS + seconds


def shares(spec: ConvSpec, most: int, channels: int) -> Iterable[Share]:
    """Shares of up to ``most`` channels that divide ``channels``."""
    return (
        Share(count, pixels)
        for count in (16, 8, 4)
        if count <= max(most, 4) and channels % count == 0
        for pixels in (4, 2, 1)
        if pixels <= spec.ow
    )


def too_large(spec: ConvSpec) -> str:
    """Why indices would not fit int32; "" if they do."""
    largest = spec.n * max(spec.h * spec.w * spec.c, spec.oh * spec.ow * spec.oc)
    return "a tensor has 2 GiB or more" if largest * 4 >= 1 << 31 else ""


def pixels_plan(
    kind: str,
    spec: ConvSpec,
    share: Share,
    weight: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None,
    ratio: np.ndarray | None,
    kernel: Callable[[str, ConvSpec, Share, int], PixelRun],
) -> KernelPlan:
    """The plan of a layer.

    Args:
        kind: of convolution.
        spec: of any type.
        share: of a thread.
        weight: as the kernel reads it.
        bias: int32 or float32 ``[oc]``, of codes with the input's zero point in it.
        multiplier: float32 ``[oc]``, for codes.
        ratio: float32 ``[oc]``, of a residual operand of codes.
        kernel: from key, layer, share and threads of a block to what emits the kernel.
    """
    constants = {
        "weight": weight,
        "bias": bias.astype(np.int32 if spec.in_dtype == "u8" else np.float32),
        "scalars": epilogue.scalars(spec.epilogue),
    }
    for name, array in (("multiplier", multiplier), ("ratio", ratio)):
        if array is not None:
            constants[name] = np.broadcast_to(array, (spec.oc,))
    coded = replace(spec, epilogue=shared_epilogue(spec.epilogue), input_slack=True)
    key, threads = name_key(f"grid_{kind}", coded, share), threads_of(spec, share)
    launch = Launch((-(-threads // THREADS), 1, 1), (min(THREADS, threads), 1, 1))
    step = KernelStep(
        key,
        lambda: kernel(key, coded, share, launch.block[0]).build(),
        layer_arguments(spec),
        threads,
        launch=launch,
    )
    name = f"{kind} {spec.kh}x{spec.kw}, {share.channels} channels of {share.pixels} pixels"
    return KernelPlan((step,), constants, kernel=name)


class PixelRun:
    """Emits a kernel; parameters as :func:`~targets.kernels.direct.layer_arguments` has them."""

    def __init__(self, key: str, spec: ConvSpec, share: Share, threads: int) -> None:
        from dlcc.tir.cuda import GridBuilder

        self.kb = kb = GridBuilder(key, threads)
        self.spec, self.share, self.integer = spec, share, spec.in_dtype == "u8"
        self.stored = spec.stored or spec.in_dtype
        self.x = kb.pointer("x", NUMPY[self.stored])
        self.weight = kb.pointer("weight", "int8" if self.integer else NUMPY[spec.in_dtype])
        self.at = epilogue.parameters(kb, self.integer, spec.epilogue.out, spec.epilogue.residual)

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb, spec, share = self.kb, self.spec, self.share
        item, threads = kb.let(kb.block * kb.threads + kb.thread, "item"), threads_of(spec, share)
        with kb.when(True if threads % kb.threads == 0 else item < threads):
            blocks, runs = spec.oc // share.channels, -(-spec.ow // share.pixels)
            channel = kb.let(item % blocks * share.channels, "channel")
            run = kb.let(item // blocks, "run")
            column, line = kb.let(run % runs * share.pixels, "column"), kb.let(run // runs, "line")
            row, image = kb.let(line % spec.oh, "row"), kb.let(line // spec.oh, "image")
            kind = "int32" if self.integer else "float32"
            self.sums = kb.alloc(kind, share.channels * share.pixels, "sums")
            for i in range(share.channels * share.pixels):
                kb.store(self.sums, i, kb.const(0, kind))
            rows = kb.unrolled if spec.kh * spec.kw <= 25 else kb.loop
            with rows(0, spec.kh, "tap_row") as ky:
                y = kb.let(row * spec.stride[0] + ky * spec.dilation[0] - spec.pads[0], "y")
                x = kb.let(column * spec.stride[1] - spec.pads[1], "x")
                start = kb.let(((image * spec.h + y) * spec.w + x) * spec.c, "start")
                self._row(y, x, start, channel, ky)
            self._store(line, column, channel)
        return kb.build()

    def _row(self, y: Any, x: Any, start: Any, channel: Any, ky: Any) -> None:
        """Adds the products of a row of taps.

        Args:
            y: the row of the input; ``x``: the column of the first pixel's first tap.
            x: may lie outside, as ``y`` may.
            start: element of the input where its channels begin.
            channel: the first one that the thread makes.
            ky: number of the row of taps.
        """
        raise NotImplementedError

    def _line(self, y: Any, x: Any, start: Any, columns: Sequence[int], channels: int) -> Any:
        """Some channels of columns of an input row, as words; outside what padding holds."""
        kb, spec = self.kb, self.spec
        count = channels * SIZE[self.stored] // 4
        line = kb.alloc("uint32", len(columns) * count, "line")
        for number, offset in enumerate(columns):
            inside = self._inside(y, x, offset)
            if inside is not True:
                fill = spec.in_zero_point * 0x01010101 if self.integer else 0
                for i in range(count):
                    kb.store(line, number * count + i, kb.const(fill, "uint32"))
            with kb.when(inside):
                place = start + offset * spec.c
                grid_lanes.load(kb, line, number * count, self.x, place, channels)
        return line

    def _inside(self, y: Any, x: Any, offset: int) -> Any:
        """Whether a column of a row lies on the input; True: it always does."""
        spec, pixels = self.spec, self.share.pixels
        top, left = spec.pads[:2]
        last = -(-spec.ow // pixels) * pixels - pixels
        tests = []
        if top:
            tests.append(y >= 0)
        if (spec.oh - 1) * spec.stride[0] + (spec.kh - 1) * spec.dilation[0] - top >= spec.h:
            tests.append(y < spec.h)
        if offset < left:
            tests.append(x + offset >= 0)
        if last * spec.stride[1] - left + offset >= spec.w:
            tests.append(x + offset < spec.w)
        return tir.tirx.all(*tests) if len(tests) > 1 else tests[0] if tests else True

    def _real(self, line: Any, place: Any) -> Any:
        """An activation as float32, rounded to what is multiplied."""
        kb, dtype = self.kb, self.spec.in_dtype
        value = grid_lanes.real(kb, line, place, self.stored)
        if self.stored == "f32" and dtype in FLOATS and dtype != "f32":
            value = kb.rounded(kb.let(value, "value"), dtype)
        return kb.widened(value)

    def _store(self, line: Any, column: Any, channel: Any) -> None:
        kb, spec, share, out = self.kb, self.spec, self.share, self.spec.epilogue
        channels = grid_lanes.Channels.loaded(kb, self.at, channel, share.channels)
        for pixel in range(share.pixels):
            whole = spec.ow % share.pixels == 0 or pixel == 0
            with kb.when(True if whole else column + pixel < spec.ow):
                index = kb.let((line * spec.ow + column + pixel) * spec.oc + channel, "index")
                first = pixel * share.channels
                channels.finish(kb, self.sums, first, index, out)
