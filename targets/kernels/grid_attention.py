"""Attention on a GPU without scores in memory: FlashAttention-2 (Dao 2023, section 3.1).

A block has 64 queries of one head, a warp 16 of them. Slices of 64 keys and values come to shared
memory while those before are multiplied. Scores stay in the registers in which ``mma`` leaves them;
rounded to 16 bits these are its first operand for the product with the values. The maximum, the sum
and the results of a row are brought up to date with each slice, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, prod
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from dlcc.program import Launch
from targets.kernels.grid_gemm_code import PART
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.kernels.spec import NUMPY, SIZE, RealType

QUERIES = 64
"""Of a block."""

KEYS = 64
"""Of a slice."""

WARPS = 4
STAGES = 2
WIDEST = 128
"""Elements of a query, and of a value: what registers hold the results of."""

LOG2_E = log2(np.e)
_SLICE_CYCLES = 700
"""Of a block for each slice, beside its products: 4096 exponentials at 16 in a cycle (CUDA C++
Programming Guide, throughput of arithmetic instructions), and a dozen operations of each at 128."""

_FIRST_CYCLES = 2000
"""Until the first slice is there, and to store the results."""


@dataclass(frozen=True)
class AttentionSpec:
    """softmax(scale * q @ k^T + mask) @ v; q [*lead, m, depth], k [*lead, n, depth].

    Attributes:
        lead: leading axes: batch, heads.
        width: of a value, [*lead, n, width].
        in_dtype: of q, k and v, of 16 bits.
        out: of the results.
        mask: its shape, as many axes as scores have, 1 where it is the same for all; () for none.
        mask_dtype: what it is stored as.
    """

    lead: tuple[int, ...]
    m: int
    n: int
    depth: int
    width: int
    in_dtype: RealType
    out: RealType
    mask: tuple[int, ...] = ()
    mask_dtype: RealType = "f32"

    @property
    def heads(self) -> int:
        """Of all batches."""
        return prod(self.lead)

    @property
    def blocks(self) -> int:
        """Blocks of queries."""
        return self.heads * -(-self.m // QUERIES)

    @property
    def parts(self) -> tuple[int, int]:
        """16-byte parts of a key and of a value, filled up to what ``mma`` multiplies at once."""
        return -(-self.depth // 16) * 2, -(-self.width // 16) * 2

    @property
    def shared_bytes(self) -> int:
        """Rows have an odd number of parts, so that eight of them meet no bank twice."""
        return STAGES * KEYS * sum(parts + 1 for parts in self.parts) * PART


def attention_refusal(spec: AttentionSpec, machine: Machine) -> str:
    """Why it cannot be computed so; "" if it can."""
    if not machine.mma:
        return "there are no matrix instructions for 16-bit floats from registers"
    for size in (spec.depth, spec.width):
        if size % 8:
            return f"rows of {size} elements are no multiple of 16 bytes"
        if size > WIDEST:
            return f"rows of {size} elements do not fit in registers; {WIDEST} do"
    if not spec.heads * spec.m * spec.n * spec.depth * spec.width:
        return "a tensor has no elements"
    longest = spec.heads * max(spec.m, spec.n) * max(spec.depth, spec.width)
    too_large = 4 * max(longest, prod(spec.mask)) >= 1 << 31
    return "a tensor has 2 GiB or more" if too_large else ""


def attention_cost(spec: AttentionSpec, machine: Machine) -> float:
    """Predicted seconds.

    Products at half of the peak, about what Dao 2023 (section 4.1) measures of all on an A100.
    """
    slices = -(-spec.n // KEYS)
    products = QUERIES * KEYS * 8 * sum(spec.parts) / (machine.products(spec.in_dtype) / 2)
    waves = -(-spec.blocks // machine.multiprocessors)
    cycles = waves * slices * (products + _SLICE_CYCLES) + _FIRST_CYCLES
    rows = spec.m * spec.depth + spec.n * (spec.depth + spec.width)
    moved = SIZE[spec.in_dtype] * rows + SIZE[spec.out] * spec.m * spec.width
    moved = spec.heads * moved + SIZE[spec.mask_dtype] * (prod(spec.mask) if spec.mask else 0)
    return LAUNCH_SECONDS + max(cycles / machine.clock, moved / machine.memory)


def grid_attention(
    spec: AttentionSpec, scale: float = 1.0, mask: np.ndarray | None = None
) -> KernelPlan:
    """Plans the layer; its inputs are q, k, v and, if it is no constant, the mask.

    Args:
        spec: the layer.
        scale: of scores.
        mask: what is added to them, where it is known; as ``spec.mask`` and ``mask_dtype`` say.
    """
    key = name_key("grid_attention", spec)
    constants: dict[str, np.ndarray] = {"pad": np.zeros(PART, np.uint8)}
    constants["scale"] = np.full(1, scale, np.float32)
    args: list[KernelArg] = [("in", 0), ("in", 1), ("in", 2)]
    if mask is not None:
        constants["mask"] = mask
    if spec.mask:
        args.append(("in", 3) if mask is None else ("const", "mask"))
    args += [("const", "pad"), ("const", "scale"), ("out", 0)]
    launch = Launch((spec.blocks, 1, 1), (32 * WARPS, 1, 1), spec.shared_bytes)
    step = KernelStep(
        key, lambda: _Attention(key, spec).build(), tuple(args), spec.blocks, launch=launch
    )
    kernel = f"mma attention, {QUERIES} queries by {KEYS} keys, {spec.heads} heads"
    return KernelPlan((step,), constants, kernel=kernel)


class _Attention:
    """Parameters q, k, v, (mask), pad, scale, y."""

    def __init__(self, key: str, spec: AttentionSpec) -> None:
        from dlcc.tir.cuda import GridBuilder

        self.spec = spec
        self.kb = kb = GridBuilder(key, 32 * WARPS)
        self.q, self.k, self.v = (kb.pointer(name, "uint8") for name in "qkv")
        self.mask = kb.pointer("mask", NUMPY[spec.mask_dtype]) if spec.mask else None
        self.pad = kb.pointer("pad", "uint8")
        self.scale = kb.pointer("scale", "float32")
        self.y = kb.pointer("y", NUMPY[spec.out])
        self.deep, self.wide = spec.parts

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb, spec = self.kb, self.spec
        self.lane = kb.let(kb.thread % 32, "lane")
        down = -(-spec.m // QUERIES)
        self.head = kb.let(kb.block // down, "head")
        self.first = kb.let(kb.block % down * QUERIES, "first")
        self.row = kb.let(kb.thread // 32 * 16, "row")
        self.keys = kb.shared("uint8", STAGES * KEYS * (self.deep + 1) * PART, "keys", 128)
        self.values = kb.shared("uint8", STAGES * KEYS * (self.wide + 1) * PART, "values", 128)
        self._offset_masks()
        self._begin()
        slices = -(-spec.n // KEYS)
        with kb.loop(0, slices, "slice") as index:
            kb.call("dlcc_copy_wait_0")
            kb.sync()
            following = kb.let(index + 1, "following")
            with kb.when(following < slices):
                self._load(following, following % STAGES)
            kb.call("dlcc_copy_commit")
            stage = kb.let(index % STAGES, "stage")
            scores = self._scores(stage)
            self._bounded(scores, index)
            self._powers(scores)
            self._results(scores, stage)
        self._store()
        return kb.build()

    # -- from global to shared memory ---------------------------------------------------------

    def _begin(self) -> None:
        """Queries to registers, by way of the second stage of keys; the first slice."""
        kb, spec = self.kb, self.spec
        self._copy(self.q, self.keys, KEYS, self.first, (spec.m, spec.depth, self.deep))
        self._load(kb.const(0, "int32"), 0)
        kb.call("dlcc_copy_commit")
        kb.call("dlcc_copy_wait_0")
        kb.sync()
        self.queries = kb.alloc("uint32", 2 * self.deep, "queries")
        for step in range(self.deep // 2):
            row = KEYS + self.row + self.lane % 16
            place = (row * (self.deep + 1) + self.lane // 16 + 2 * step) * PART
            to = kb.address(self.queries, 4 * step)
            kb.call("dlcc_ldmatrix4", to, kb.address(self.keys, place))
        self.sums = kb.alloc("float32", 4 * self.wide, "sums")
        self.best, self.total = kb.alloc("float32", 2, "best"), kb.alloc("float32", 2, "total")
        for i in range(4 * self.wide):
            kb.store(self.sums, i, kb.const(0.0, "float32"))
        for half in range(2):
            kb.store(self.best, half, kb.const(float("-inf"), "float32"))
            kb.store(self.total, half, kb.const(0.0, "float32"))

    def _load(self, index: Any, stage: Any) -> None:
        """Starts the copies of a slice."""
        spec, first = self.spec, self.kb.let(index * KEYS, "first_key")
        row = self.kb.let(stage * KEYS, "stage_row") if not isinstance(stage, int) else stage * KEYS
        self._copy(self.k, self.keys, row, first, (spec.n, spec.depth, self.deep))
        self._copy(self.v, self.values, row, first, (spec.n, spec.width, self.wide))

    def _copy(
        self, source: Any, to: Any, to_row: Any, first: Any, shape: tuple[int, int, int]
    ) -> None:
        """Starts the copies of 64 rows from ``first`` on: of ``shape`` rows, elements and parts.

        What lies behind the last row and in a row's last part is 0.
        """
        kb, (rows, elements, parts) = self.kb, shape
        size = elements * SIZE[self.spec.in_dtype]
        for i in range(KEYS * parts // (32 * WARPS)):
            number = kb.let(kb.thread + 32 * WARPS * i, "number")
            part, line = kb.let(number % parts, "part"), kb.let(number // parts, "line")
            row = kb.let(first + line, "row")
            start = (self.head * rows + row) * size + part * PART
            place = kb.address(to, ((to_row + line) * (parts + 1) + part) * PART)
            inside = kb.cast(tir.tirx.all(row < rows, part * PART < size), "int32")
            pad = kb.address(self.pad, 0)
            kb.call("dlcc_copy16_if", place, kb.address(source, start), pad, inside)

    # -- a slice ------------------------------------------------------------------------------

    def _scores(self, stage: Any) -> Any:
        """Q k^T of a warp: of each 8 keys four numbers of a lane, rows lane / 4 and + 8."""
        kb, lane = self.kb, self.lane
        scores = kb.alloc("float32", 4 * KEYS // 8, "scores")
        for i in range(4 * KEYS // 8):
            kb.store(scores, i, kb.const(0.0, "float32"))
        row = kb.let(stage * KEYS + lane % 8 + lane // 16 * 8, "key_row")
        start = kb.let((row * (self.deep + 1) + lane // 8 % 2) * PART, "key_start")
        b = kb.alloc("uint32", 4, "b")
        for step in range(self.deep // 2):
            a = kb.address(self.queries, 4 * step)
            for j in range(0, KEYS // 8, 2):
                place = start + (8 * j * (self.deep + 1) + 2 * step) * PART
                kb.call("dlcc_ldmatrix4", kb.address(b, 0), kb.address(self.keys, place))
                self._multiply(scores, j, a, b)
        return scores

    def _multiply(self, sums: Any, j: int, a: Any, b: Any) -> None:
        """Adds products to the sums of columns 8 j to 8 j + 15."""
        kb = self.kb
        for i in range(2):
            to = kb.address(sums, 4 * (j + i))
            kb.call(f"dlcc_mma_{self.spec.in_dtype}", to, a, kb.address(b, 2 * i))

    def _places(self) -> list[tuple[int, int, int]]:
        """Of each score of a lane its number, its half of the rows, and its column in a warp's."""
        return [
            (4 * j + 2 * half + i, half, 8 * j + i)
            for j in range(KEYS // 8)
            for half in range(2)
            for i in range(2)
        ]

    def _offset_masks(self) -> None:
        """Where the mask of this head begins, and rows of this lane in it."""
        kb, spec = self.kb, self.spec
        if self.mask is None:
            return
        strides = [
            0 if extent == 1 else prod(spec.mask[axis + 1 :])
            for axis, extent in enumerate(spec.mask)
        ]
        start: Any = kb.const(0, "int32")
        rest = self.head
        for extent, stride in reversed(list(zip(spec.lead, strides, strict=False))):
            start = start + rest % extent * stride
            rest = kb.let(rest // extent, "rest")
        start, self.mask_rows = kb.let(start, "mask_start"), []
        for half in range(2):
            row = tir.tirx.min(self.first + self.row + self.lane // 4 + 8 * half, spec.m - 1)
            self.mask_rows.append(kb.let(start + row * strides[-2], "mask_row"))
        self.mask_stride = strides[-1]

    def _bounded(self, scores: Any, index: Any) -> None:
        """Scales and masks the scores; behind the last key they are -inf."""
        kb, spec = self.kb, self.spec
        scale = kb.let(kb.load(self.scale, 0), "scale")
        column = kb.let(index * KEYS + self.lane % 4 * 2, "column")
        for number, half, more in self._places():
            key = column + more
            score = kb.load(scores, number) * scale
            if self.mask is not None:
                known = tir.tirx.min(key, spec.n - 1) if spec.n % KEYS else key
                place = self.mask_rows[half] + known * self.mask_stride
                score = score + kb.widened(kb.load(self.mask, place))
            if spec.n % KEYS:
                lowest = kb.const(float("-inf"), "float32")
                score = tir.tirx.Select(key < spec.n, kb.let(score, "score"), lowest)
            kb.store(scores, number, score)

    def _powers(self, scores: Any) -> None:
        """Exponentials in place of scores; brings maxima, sums and results up to date.

        Where all scores so far are -inf, 0 is in place of their maximum: no power is NaN for that.
        """
        kb = self.kb
        for half in range(2):
            own = [number for number, other, _ in self._places() if other == half]
            old = kb.let(kb.load(self.best, half), "old")
            best = old
            for number in own:
                best = kb.let(tir.tirx.max(best, kb.load(scores, number)), "best")
            for lanes in (1, 2):
                theirs = kb.extern("dlcc_exchange_f32", "float32", 1, best, lanes)
                best = kb.let(tir.tirx.max(best, kb.let(theirs, "theirs")), "best")
            kb.store(self.best, half, best)
            lowest = kb.const(float("-inf"), "float32")
            zero = kb.const(0.0, "float32")
            base = kb.let(tir.tirx.Select(best > lowest, best, zero), "base")
            factor = self._power(old, base, "factor")
            total = kb.let(kb.load(self.total, half) * factor, "total")
            for number in own:
                power = self._power(kb.load(scores, number), base, "power")
                kb.store(scores, number, power)
                total = kb.let(total + power, "total")
            kb.store(self.total, half, total)
            for number in range(2 * half, 4 * self.wide, 4):
                for i in (number, number + 1):
                    kb.store(self.sums, i, kb.load(self.sums, i) * factor)

    def _power(self, score: Any, base: Any, name: str) -> Any:
        """exp(score - base)."""
        kb = self.kb
        exponent = kb.let(score - base, "below") * kb.const(LOG2_E, "float32")
        return kb.let(kb.extern("dlcc_exp2", "float32", 1, exponent), name)

    def _results(self, powers: Any, stage: Any) -> None:
        """Adds the products of the powers and the values."""
        kb, lane = self.kb, self.lane
        row = kb.let(stage * KEYS + lane % 16, "value_row")
        start = kb.let((row * (self.wide + 1) + lane // 16) * PART, "value_start")
        a, b = kb.alloc("uint32", 4, "a"), kb.alloc("uint32", 4, "b")
        for step in range(KEYS // 16):
            for i in range(4):
                kb.store(a, i, self._packed(powers, 8 * step + 2 * i))
            for j in range(0, self.wide, 2):
                place = start + (16 * step * (self.wide + 1) + j) * PART
                kb.call("dlcc_ldmatrix4_trans", kb.address(b, 0), kb.address(self.values, place))
                self._multiply(self.sums, j, kb.address(a, 0), b)

    def _packed(self, numbers: Any, at: int) -> Any:
        """Two neighbours rounded to 16 bits."""
        kb = self.kb
        pair = kb.load(numbers, at), kb.load(numbers, at + 1)
        return kb.extern(f"dlcc_pack2_{self.spec.in_dtype}", "uint32", 1, *pair)

    # -- results ------------------------------------------------------------------------------

    def _store(self) -> None:
        """Results over the sums of their rows, 4 or 8 bytes at once."""
        kb, spec, lane = self.kb, self.spec, self.lane
        short = spec.out != "f32"
        pair = kb.alloc("uint32" if short else "float32", 1 if short else 2, "pair")
        for half in range(2):
            total = kb.load(self.total, half)
            for lanes in (1, 2):
                total = kb.let(total, "total")
                theirs = kb.extern("dlcc_exchange_f32", "float32", 1, total, lanes)
                total = total + kb.let(theirs, "theirs")
            share = kb.let(kb.const(1.0, "float32") / total, "share")
            row = kb.let(self.first + self.row + lane // 4 + 8 * half, "row")
            start = kb.let((self.head * spec.m + row) * spec.width + lane % 4 * 2, "start")
            with kb.when(row < spec.m):
                for j in range(spec.width // 8):
                    both = [kb.load(self.sums, 4 * j + 2 * half + i) * share for i in range(2)]
                    if short:
                        rounded = kb.extern(f"dlcc_pack2_{spec.out}", "uint32", 1, *both)
                        kb.store(pair, 0, rounded)
                    else:
                        for i in range(2):
                            kb.store(pair, i, both[i])
                    to = kb.address(self.y, start + 8 * j)
                    kb.call(f"dlcc_store{2 * SIZE[spec.out]}", to, kb.address(pair, 0))
