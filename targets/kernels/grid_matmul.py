"""Products of two activations on a GPU, by the kernel of convolutions.

The second operand is copied into the form of weights before: a row for each column of the result,
filled up with zeros. Of codes it becomes signed, ``b' = b - 128``, and what both zero points add is
split into a term for each row and one for each column of the result::

    sum (a - za) (b - zb) = sum a b' + (128 - zb) sum a - za (sum b' + k (128 - zb))
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from dlcc.program import Launch
from targets.kernels import epilogue
from targets.kernels.direct import shared_epilogue
from targets.kernels.grid_gemm import best_tile, predicted, product_name
from targets.kernels.grid_gemm_code import PART, SLICE, Layer, Tile, gemm_function
from targets.kernels.grid_items import thread_each
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.kernels.spec import NUMPY, SIZE, ConvSpec, Epilogue, MatmulSpec

_COPY_SECONDS = 2e-12
"""For an element that is copied before."""


def matmul_refusal(spec: MatmulSpec) -> str:
    """Why products cannot be computed so; "" if they can."""
    largest = spec.batch * max(
        spec.m * spec.k, (spec.n + 256) * (spec.k + 2 * SLICE), spec.m * spec.n
    )
    return "a tensor has 2 GiB or more" if 4 * largest >= 1 << 31 else ""


def _as_layer(spec: MatmulSpec) -> ConvSpec:
    """A linear layer as large as all products, to predict times by."""
    return ConvSpec(1, 1, spec.batch * spec.m, spec.k, spec.n, in_dtype=spec.in_dtype)


def matmul_tile(spec: MatmulSpec, machine: Machine) -> Tile:
    """The tile of each product; its depth is not cut."""
    return replace(best_tile(_as_layer(spec), machine), splits=1)


def matmul_cost(spec: MatmulSpec, machine: Machine) -> float:
    """Predicted seconds, copies before it included."""
    copied = spec.batch * (spec.k * spec.n + spec.m * spec.k)
    tile = matmul_tile(spec, machine)
    return predicted(_as_layer(spec), tile, machine) + 3 * LAUNCH_SECONDS + copied * _COPY_SECONDS


def grid_matmul(spec: MatmulSpec, machine: Machine, multiplier: float | None = None) -> KernelPlan:
    """The plan of ``y[b] = a[b] @ b[b]``; inputs are 0 ``a`` and 1 ``b``.

    Args:
        spec: the products.
        machine: the GPU.
        multiplier: of an integer layer.
    """
    integer, size = spec.in_dtype == "u8", SIZE[spec.in_dtype]
    tile = matmul_tile(spec, machine)
    width = -(-spec.k * size // PART) * PART
    layer = Layer(
        spec.m,
        spec.n,
        width,
        spec.in_dtype,
        shared_epilogue(spec.epilogue),
        width=width,
        batch=spec.batch,
        activations=True,
    )
    depth = tile.row_bytes(width) // size
    rows = -(-spec.n // tile.columns) * tile.columns
    steps: list[KernelStep] = []
    scratch = [spec.batch * rows * depth * size]
    constants = {
        "pad": np.zeros(PART, np.uint8),
        "scalars": epilogue.scalars(spec.epilogue),
        "points": np.array([spec.a_zero_point, 128 - spec.b_zero_point], np.int32),
    }
    source: KernelArg = ("in", 0)
    steps.append(_operand_step(_shape(spec), rows, depth, ("scratch", 0)))
    if width != spec.k * size or spec.a_stored not in (None, spec.in_dtype):
        source = ("scratch", len(scratch))
        scratch.append(spec.batch * spec.m * width)
        steps.append(_rows_step(_shape(spec), width // size, source))
    bias: KernelArg = ("const", "bias")
    terms: tuple[KernelArg, ...] = ()
    if integer:
        terms, bias = (("scratch", len(scratch)),), ("scratch", len(scratch) + 1)
        scratch += [4 * spec.batch * spec.m, 4 * spec.batch * spec.n]
        points: KernelArg = ("const", "points")
        steps.append(_terms_step(_shape(spec), width, (source, points, *terms)))
        steps.append(_biases_step(_shape(spec), rows, depth, (("scratch", 0), points, bias)))
        value = np.float32(1.0 if multiplier is None else multiplier)
        constants["multiplier"] = np.full(spec.n, value, np.float32)
    else:
        constants["bias"] = np.zeros(spec.n, np.float32)
        del constants["points"]
    unit = machine.unit(spec.in_dtype)
    key = name_key(f"grid_matmul_{unit}", layer, tile)
    blocks = -(-spec.m // tile.rows) * -(-spec.n // tile.columns) * spec.batch
    names = epilogue.argument_names(integer, None)
    finish: list[KernelArg] = [bias if name == "bias" else ("const", name) for name in names]
    args = (source, ("scratch", 0), ("const", "pad"), *terms, *finish, ("out", 0))
    launch = Launch((blocks, 1, 1), (tile.threads, 1, 1), tile.shared_bytes)
    build = gemm_function(key, layer, tile, unit)
    steps.append(KernelStep(key, build, args, blocks, launch=launch))
    product = product_name(spec.in_dtype, tile, machine)
    name = f"{product} {tile.rows}x{tile.columns}, {spec.batch} products"
    return KernelPlan(tuple(steps), constants, scratch=tuple(scratch), kernel=name)


def _shape(spec: MatmulSpec) -> MatmulSpec:
    """``spec`` without what copies do not depend on."""
    plain = Epilogue()
    return replace(spec, a_zero_point=0, b_zero_point=0, epilogue=plain, a_slack=True, b_slack=True)


def _short(kb: Any, value: Any, stored: str | None, dtype: str) -> Any:
    """An element rounded to what is multiplied."""
    if stored == "f32" and dtype in ("bf16", "f16"):
        return kb.rounded(kb.let(value, "value"), dtype)
    return value


def _operand_step(spec: MatmulSpec, rows: int, depth: int, to: KernelArg) -> KernelStep:
    """``b`` as ``[batch, rows, depth]``, a thread for each element."""
    key = name_key("grid_operand", spec, rows, depth)
    items = spec.batch * rows * depth
    dtype = "int8" if spec.in_dtype == "u8" else NUMPY[spec.in_dtype]

    def build() -> Any:
        kb = tir.KernelBuilder(key)
        b = kb.pointer("b", NUMPY[spec.b_stored or spec.in_dtype], 1)
        y = kb.pointer("y", dtype)
        with kb.loop(kb.begin, kb.end, "element") as element:
            # neighbouring threads read neighbouring columns where a row of b has all columns
            outer, inner = (rows, depth) if spec.transpose_b else (depth, rows)
            first = kb.let(element % inner, "first")
            rest = kb.let(element // inner, "rest")
            second, product = kb.let(rest % outer, "second"), kb.let(rest // outer, "product")
            k, n = (first, second) if spec.transpose_b else (second, first)
            at = kb.let((product * rows + n) * depth + k, "at")
            kb.store(y, at, kb.const(0, dtype))
            with kb.when(tir.tirx.all(k < spec.k, n < spec.n)):
                place = n * spec.k + k if spec.transpose_b else k * spec.n + n
                value = kb.load(b, product * (spec.k * spec.n) + place)
                if spec.in_dtype == "u8":
                    value = kb.cast(kb.cast(value, "int32") - 128, "int8")
                kb.store(y, at, _short(kb, value, spec.b_stored, spec.in_dtype))
        return kb.build()

    return thread_each(KernelStep(key, build, (("in", 1), to), items))


def _rows_step(spec: MatmulSpec, width: int, to: KernelArg) -> KernelStep:
    """``a`` with rows of ``width`` elements, zeros at their ends."""
    key = name_key("grid_padded_rows", spec, width)
    dtype = NUMPY[spec.in_dtype]

    def build() -> Any:
        kb = tir.KernelBuilder(key)
        a, y = kb.pointer("a", NUMPY[spec.a_stored or spec.in_dtype], 1), kb.pointer("y", dtype)
        with kb.loop(kb.begin, kb.end, "element") as element:
            k, row = kb.let(element % width, "k"), kb.let(element // width, "row")
            kb.store(y, element, kb.const(0, dtype))
            with kb.when(True if width == spec.k else k < spec.k):
                value = kb.load(a, row * spec.k + k)
                kb.store(y, element, _short(kb, value, spec.a_stored, spec.in_dtype))
        return kb.build()

    return thread_each(KernelStep(key, build, (("in", 0), to), spec.batch * spec.m * width))


def _terms_step(spec: MatmulSpec, width: int, args: tuple[KernelArg, ...]) -> KernelStep:
    """For each row of ``a`` its sum times 128 - zb."""
    key = name_key("grid_terms", spec, width)

    def build() -> Any:
        kb = tir.KernelBuilder(key)
        a, points = kb.pointer("a", "uint8"), kb.pointer("points", "int32")
        y = kb.pointer("y", "int32")
        with kb.loop(kb.begin, kb.end, "row") as row:
            total = kb.alloc("int32", 1, "sum")
            kb.store(total, 0, kb.const(0, "int32"))
            with kb.loop(0, spec.k, "k") as k:
                code = kb.cast(kb.load(a, row * width + k), "int32")
                kb.store(total, 0, kb.load(total, 0) + code)
            kb.store(y, row, kb.load(total, 0) * kb.load(points, 1))
        return kb.build()

    return thread_each(KernelStep(key, build, args, spec.batch * spec.m))


def _biases_step(
    spec: MatmulSpec, rows: int, depth: int, args: tuple[KernelArg, ...]
) -> KernelStep:
    """For each column of each product -za (sum b' + k (128 - zb))."""
    key = name_key("grid_biases", spec, rows, depth)

    def build() -> Any:
        kb = tir.KernelBuilder(key)
        b, points = kb.pointer("b", "int8"), kb.pointer("points", "int32")
        y = kb.pointer("y", "int32")
        with kb.loop(kb.begin, kb.end, "column") as column:
            line = column // spec.n * rows + column % spec.n
            start = kb.let(line * depth, "start")
            total = kb.alloc("int32", 1, "sum")
            kb.store(total, 0, kb.load(points, 1) * spec.k)
            with kb.loop(0, spec.k, "k") as k:
                code = kb.cast(kb.load(b, start + k), "int32")
                kb.store(total, 0, kb.load(total, 0) + code)
            kb.store(y, column, kb.const(0, "int32") - kb.load(total, 0) * kb.load(points, 0))
        return kb.build()

    return thread_each(KernelStep(key, build, args, spec.batch * spec.n))
