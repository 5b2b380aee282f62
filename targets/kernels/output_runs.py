"""Product of one row of float32 activations and weights whose codes stand for runs of numbers.

A code is the place of a run in a codebook, so that the run's products are multiply-adds of vectors
from the book. Runs lie along the outputs of an activation, which is in every lane then; or along
the inputs of an output (``inputs``), with the activations beside them: then the lanes of an
output's sum are added up in the end. The codes of an item's runs lie side by side for each
activation, or for each run of activations; codes of at most four bits share a byte in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa
from targets.kernels import epilogue
from targets.kernels.conv import channel_constants
from targets.kernels.spec import SHORT_FLOATS, ConvSpec, ResidualType

RUNS = 8
"""Runs of an item, where their sums fit the registers."""

INPUT_RUNS = 16
"""The same of runs of inputs, whose sums take a vector each."""

_CYCLES = 1.0
"""Of one code: its load, the place of the run, and the multiply-add of a vector."""


@dataclass(frozen=True)
class RunCodes:
    """The weight of a layer.

    Attributes:
        codes: ``[stages, columns, blocks]``: for every input and block of outputs (every run of
            inputs and output) a run of each stage; the runs of all stages are added.
        books: float32 ``[stages, blocks (runs of inputs) or 1, entries, length]``.
        inputs: runs lie along the inputs.
    """

    codes: np.ndarray
    books: np.ndarray
    inputs: bool = False


@dataclass(frozen=True)
class OutputRuns:
    """What determines the code.

    Attributes:
        k: columns; of runs of inputs as many.
        blocks: runs of outputs; of runs of inputs the outputs.
        length: numbers of a run.
        stages: codes of a run.
        entries: of a codebook.
        shared: one codebook for all blocks of outputs (runs of inputs).
        runs: of an item; even.
        width: numbers of a vector.
        fused: products and sums are fused.
        inputs: runs lie along the inputs.
    """

    k: int
    blocks: int
    length: int
    stages: int
    entries: int
    shared: bool
    runs: int
    width: int
    fused: bool
    inputs: bool
    residual: ResidualType | None

    @property
    def books(self) -> int:
        """Codebooks of a stage."""
        return 1 if self.shared else self.k if self.inputs else self.blocks

    @property
    def items(self) -> int:
        """Work items."""
        return ceil(self.blocks / self.runs)

    @property
    def paired(self) -> bool:
        """Two codes share a byte."""
        return self.entries <= 16

    @property
    def dtype(self) -> str:
        """Of the codes."""
        return "uint8" if self.entries <= 256 else "uint16"

    @property
    def row(self) -> int:
        """Elements of the codes of an activation and a stage, in an item."""
        return self.runs // 2 if self.paired else self.runs


def pack_runs(codes: np.ndarray, kernel: OutputRuns) -> np.ndarray:
    """Codes [stages, columns, blocks] as ``[items, columns, stages, row]``."""
    stages, columns, blocks = codes.shape
    full = np.zeros((stages, columns, kernel.items * kernel.runs), np.uint16)
    full[:, :, :blocks] = codes
    split = full.reshape(stages, columns, kernel.items, kernel.runs).transpose(2, 1, 0, 3)
    if kernel.paired:
        split = split[..., 0::2] | split[..., 1::2] << np.uint16(4)
    return np.ascontiguousarray(split.astype(kernel.dtype))


def runs_function(name: str, kernel: OutputRuns) -> Any:
    """The PrimFunc: parameters x, codes, books, the epilogue's, residual, y."""
    kb = tir.KernelBuilder(name)
    x = kb.pointer("x", "float32", align=1)
    codes, books = kb.pointer("codes", kernel.dtype), kb.pointer("books", "float32")
    out = epilogue.parameters(kb, False, "f32", kernel.residual)
    whole, rest = divmod(kernel.blocks, kernel.runs)
    with kb.loop(kb.begin, kb.end, "item") as item:
        for inside, count in ((item < whole, kernel.runs), (item >= whole, rest)):
            if count and (whole or count == rest):
                with kb.when(inside if whole and rest else True):
                    acc = _sums(kb, kernel, (x, codes, books), item, count)
                    _finish(kb, kernel, out, acc, item, count)
    return kb.build()


def _finish(
    kb: tir.KernelBuilder, kernel: OutputRuns, out: Any, acc: Any, item: Any, count: int
) -> None:
    """The epilogue of an item's first ``count`` runs."""
    width = kernel.width
    each = 1 if kernel.inputs else kernel.length
    for first in range(0, count * each, width):
        at = kb.let(item * (kernel.runs * each) + first, "output")
        channel = epilogue.load_channels(kb, out, at, width)
        if kernel.inputs:
            value = _across(kb, acc, first, min(width, count - first), width)
        else:
            value = kb.load(acc, first, width)
        here = min(width, count * each - first)
        epilogue.finish(kb, out, channel, kb.let(value, "value"), at, here, "f32")


def _across(kb: tir.KernelBuilder, acc: Any, first: int, count: int, width: int) -> Any:
    """The sums of the lanes of ``count`` vectors from the ``first``, side by side."""
    vectors = [kb.load(acc, (first + i) * width, width) for i in range(count)]
    vectors += vectors[-1:] * (width - count)
    while len(vectors) > 1:
        even, odd = (range(side, 2 * width, 2) for side in range(2))
        vectors = [
            kb.let(kb.shuffle(low, even, high) + kb.shuffle(low, odd, high), "sums")
            for low, high in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]


def _sums(
    kb: tir.KernelBuilder, kernel: OutputRuns, pointers: tuple[Any, Any, Any], item: Any, count: int
) -> Any:
    """The sums of the outputs of an item's first ``count`` runs."""
    x, codes, books = pointers
    length, width = kernel.length, kernel.width
    each = width if kernel.inputs else length
    acc = kb.alloc("float32", count * each)
    for at in range(0, count * each, width):
        kb.store(acc, at, kb.const(0.0, "float32", width))
    size = kernel.entries * length
    with kb.loop(0, kernel.k, "column") as column:
        if kernel.inputs:
            parts = range(0, length, width)
            numbers = [kb.let(kb.load(x, column * length + at, width), "x") for at in parts]
        else:
            numbers = [kb.let(kb.splat(kb.load(x, column), width), "x")] * (length // width)
        start = kb.let((item * kernel.k + column) * (kernel.stages * kernel.row), "start")
        for run in range(count):
            places = []
            which = column if kernel.inputs else item * kernel.runs + run
            for stage in range(kernel.stages):
                code = _code(kb, kernel, codes, start + stage * kernel.row, run)
                book = stage * (size * kernel.books)
                base = book if kernel.shared else book + which * size
                places.append(kb.let(code * length + base, "place"))
            for part, number in enumerate(numbers):
                at = part * width
                weight = kb.load(books, places[0] + at, width)
                for place in places[1:]:
                    weight = weight + kb.load(books, place + at, width)
                slot = run * each + (0 if kernel.inputs else at)
                total = kb.load(acc, slot, width)
                if kernel.fused:
                    total = kb.pure("llvm.fma", "float32", width, weight, number, total)
                else:
                    total = total + weight * number
                kb.store(acc, slot, total)
    return acc


def _code(kb: tir.KernelBuilder, kernel: OutputRuns, codes: Any, start: Any, run: int) -> Any:
    """A code as int32."""
    at = run // 2 if kernel.paired else run
    code = kb.cast(kb.load(codes, start + at), "int32")
    if not kernel.paired:
        return code
    if run % 2:
        return tir.tirx.shift_right(code, kb.const(4, "int32"))
    return tir.tirx.bitwise_and(code, kb.const(15, "int32"))


def refusal(spec: ConvSpec, length: int, along: str = "output") -> str:
    """Why the kernel cannot take a layer; "" if it can."""
    if spec.n * spec.oh * spec.ow != 1 or spec.kh * spec.kw != 1 or spec.groups != 1:
        return "it is no product of one row of activations and a matrix"
    if (
        spec.in_dtype != "f32"
        or spec.epilogue.out != "f32"
        or spec.epilogue.residual in SHORT_FLOATS
    ):
        return "the activations are not float32"
    if length % 4 or length > 64:
        return f"runs of {length} {along}s fill no vectors"
    return ""


def _kernel(spec: ConvSpec, isa: Isa, form: tuple[int, int, int, bool], inputs: bool) -> OutputRuns:
    """``form``: length, stages, entries, shared."""
    length, stages, entries, shared = form
    width = min(isa.lanes, length & -length)
    if inputs:
        runs, blocks, columns = min(INPUT_RUNS, isa.registers // 2), spec.oc, spec.c // length
    else:
        room = isa.registers // 2 * width // length
        runs = max(2, min(RUNS, room) // 2 * 2)
        blocks, columns = spec.oc // length, spec.c
    residual = spec.epilogue.residual
    return OutputRuns(
        columns, blocks, length, stages, entries, shared, runs, width, isa.fma, inputs, residual
    )


def output_runs_cost(
    spec: ConvSpec, isa: Isa, form: tuple[int, int, int, bool], *, inputs: bool = False
) -> float:
    """Predicted seconds of :func:`output_runs` on one thread.

    ``form``: as of :class:`RunCodes`: length, stages, entries, whether the codebook is shared.
    """
    kernel = _kernel(spec, isa, form, inputs)
    codes = kernel.k * kernel.blocks * kernel.stages
    vectors = kernel.length / kernel.width
    each = max(_CYCLES, vectors)
    if isa.arch != "x86":  # two pipes: the code, its place, and of each vector a load and a product
        each = 0.5 * (1.0 + (vectors > 1) + 2.0 * vectors)
        if isa.dot == "mlal":  # such cores load once in a cycle
            each = max(each, 1.0 + vectors)
    cycles = codes * each + kernel.k * kernel.items * 2.0
    size = codes * (1 if kernel.dtype == "uint8" else 2) // (2 if kernel.paired else 1)
    books = kernel.stages * kernel.entries * kernel.length * 4
    size += books * kernel.books
    return max(cycles / CLOCK, isa.read_seconds(size))


def output_runs(spec: ConvSpec, isa: Isa, coded: RunCodes, bias: np.ndarray) -> KernelPlan:
    """Plans a linear layer of one row of float32 activations.

    Args:
        spec: the layer.
        isa: the instruction set.
        coded: the weight.
        bias: float32 [outputs].
    """
    stages, blocks, entries, length = coded.books.shape
    kernel = _kernel(spec, isa, (length, stages, entries, blocks == 1), coded.inputs)
    constants = {
        "codes": pack_runs(coded.codes, kernel),
        "books": np.ascontiguousarray(coded.books, np.float32),
    }
    numbers = bias.astype(np.float32)
    constants |= channel_constants(spec.epilogue, 1, kernel.width, numbers, None, None)
    names = ["codes", "books", *epilogue.argument_names(False, kernel.residual)]
    args: list[KernelArg] = [("in", 0), *(("const", name) for name in names)]
    args += [("in", 1)] if kernel.residual is not None else []
    key = name_key("output_runs", kernel)
    build = partial(runs_function, key, kernel)
    return KernelPlan(
        (KernelStep(key, build, (*args, ("out", 0)), kernel.items),),
        constants,
        features=isa.vector_flags(),
        kernel=f"{'input' if coded.inputs else 'output'}-runs {stages} x {length}",
        compressed=True,
    )
