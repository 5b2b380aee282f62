"""Compiles default TIR of single nodes into one library and compares it with the references.

Usage::

    cases = [case("max_pool2d", [u8(1, 3, 8, 8)], {"kernel": (2, 2)}), ...]
    check(cases, tmp_path)

All cases of one call share one object file and one link step, which is what takes the time.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dlcc.ir import F32, Affine, DType, Graph, Node, TensorType, Value
from dlcc.ir.encodings import DENSE, Encoding
from dlcc.ops import build, op_of

LANES = 8
CPU = "x86-64-v3"


@dataclass
class Operand:
    """An operand: its stored contents, its type, and whether the compiler knows them."""

    array: np.ndarray
    encoding: Encoding = DENSE
    constant: bool = False
    layout: str = ""
    dtype: DType | None = None

    @property
    def type(self) -> TensorType:
        dtype = self.dtype or (F32 if self.encoding != DENSE else DType.of(self.array))
        return TensorType(self.array.shape, dtype, self.encoding, self.layout)


@dataclass
class Case:
    """One node with its operands. ``tolerance`` is relative to the largest result (floats)."""

    graph: Graph
    node: Node
    arrays: list[np.ndarray | None]
    tolerance: float = 1e-5
    name: str = ""
    expected: list[np.ndarray] = field(default_factory=list)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def f32(*shape: int, seed: int = 0, scale: float = 1.0, layout: str = "") -> Operand:
    """A random float activation."""
    array = (rng(seed).normal(size=shape) * scale).astype(np.float32)
    return Operand(array, layout=layout)


def u8(
    *shape: int, seed: int = 0, scale: float = 0.05, zero_point: int = 117, layout: str = ""
) -> Operand:
    """A random quantised activation."""
    array = rng(seed).integers(0, 256, size=shape).astype(np.uint8)
    return Operand(array, Affine.per_tensor(8, False, scale, zero_point), layout=layout)


def constant(array: np.ndarray, encoding: Encoding = DENSE) -> Operand:
    """A compile-time constant (stored contents)."""
    return Operand(np.asarray(array), encoding, constant=True)


def affine(scale: float, zero_point: int = 0, bits: int = 8) -> Affine:
    """An unsigned per-tensor encoding."""
    return Affine.per_tensor(bits, False, scale, zero_point)


def case(
    op: str,
    operands: Sequence[Operand | None],
    attrs: Mapping[str, Any] | None = None,
    *,
    out: Encoding | None = None,
    layout: str = "",
    tolerance: float = 1e-5,
    outputs: int = 1,
) -> Case:
    """A one-node graph. ``out`` and ``layout`` are the encoding and layout of all outputs."""
    graph = Graph("case")
    values: list[Value | None] = []
    for index, operand in enumerate(operands):
        if operand is None:
            values.append(None)
        elif operand.constant:
            values.append(graph.add_stored({"values": operand.array}, operand.type))
        else:
            values.append(graph.add_input(f"x{index}", operand.type))
    node = build(graph, op, values, attrs, loc=op, outputs=outputs)
    for value in node.outputs:
        encoding = value.type.encoding if out is None else out
        value.type = value.type.with_(encoding=encoding, layout=layout)
    graph.set_outputs(node.outputs)
    arrays = [None if o is None else o.array for o in operands]
    return Case(graph, node, arrays, tolerance, f"{op}{dict(attrs or {})}{node.outputs[0].type}")


def physical(array: np.ndarray, type_: TensorType) -> np.ndarray:
    """A stored array in memory order, with at least one axis."""
    moved = np.ascontiguousarray(array.transpose(type_.permutation))
    return moved.reshape(moved.shape or (1,))


def reference(checked: Case) -> list[np.ndarray]:
    """What the kernel must compute, in the outputs' storage dtypes."""
    results = op_of(checked.node).reference(checked.node, checked.arrays)
    return [
        np.asarray(a).astype(v.type.storage.numpy).reshape(v.type.shape)
        for a, v in zip(results, checked.node.outputs, strict=True)
    ]


@dataclass
class _Kernel:
    func: Any
    items: int
    constants: list[np.ndarray]


def lower(checked: Case, name: str, lanes: int = LANES) -> _Kernel:
    """The scheduled default TIR of a case."""
    from dlcc.tir.access import TirContext
    from dlcc.tir.te_kernels import elementwise_like

    ctx = TirContext(checked.node)
    op_of(checked.node).compute(checked.node, ctx)
    inputs = [t for t in ctx.operands if t is not None] + [t for _, t in ctx.constants]
    func, items = elementwise_like(name, inputs, ctx.results, lanes, item_axes=ctx.item_axes)
    return _Kernel(func, items, [a for a, _ in ctx.constants])


def link(code: bytes, folder: Path) -> ctypes.CDLL:
    """Object code as a loaded library; a symbol left open fails here or at loading."""
    source, shared = folder / "kernels.o", folder / "kernels.so"
    source.write_bytes(code)
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.17"]
    subprocess.run([*command, "-shared", "-o", str(shared), str(source)], check=True)
    return ctypes.CDLL(str(shared))


def arguments(checked: Case, kernel: _Kernel) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What a kernel reads, and what it writes to."""
    pairs = zip(checked.arrays, checked.node.inputs, strict=True)
    arrays = [physical(a, v.type) for a, v in pairs if a is not None and v is not None]
    outs = [
        np.full(v.type.physical_shape or (1,), 77, v.type.storage.numpy)
        for v in checked.node.outputs
    ]
    return arrays + kernel.constants, outs


def logical(checked: Case, written: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What a kernel wrote, in logical order."""
    results = []
    for array, value in zip(written, checked.node.outputs, strict=True):
        inverse = np.argsort(value.type.permutation)
        shaped = array.reshape(value.type.physical_shape)
        results.append(shaped.transpose(inverse) if value.type.rank else shaped.reshape(()))
    return results


def run(checked: Case, kernel: _Kernel, function: Any) -> list[np.ndarray]:
    """Call a kernel, its work items in two ranges; results in logical order."""
    arrays, outs = arguments(checked, kernel)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, *outs)]
    half = kernel.items // 2
    for begin, end in ((0, half), (half, kernel.items)):
        assert function(*pointers, ctypes.c_int32(begin), ctypes.c_int32(end)) == 0
    return logical(checked, outs)


def compare(checked: Case, got: Sequence[np.ndarray]) -> None:
    """Integers and integer-only inputs bit for bit, floats within the case's tolerance."""
    for actual, wanted in zip(got, reference(checked), strict=True):
        message = checked.name
        if DType.of(wanted).is_narrow:  # float8 and other types of ml_dtypes: their NaN too
            actual, wanted = actual.view(np.uint8), wanted.view(np.uint8)
        if wanted.dtype.kind != "f":
            np.testing.assert_array_equal(actual, wanted, err_msg=message)
            continue
        finite = np.isfinite(wanted)
        np.testing.assert_array_equal(actual[~finite], wanted[~finite], err_msg=message)
        largest = float(np.abs(wanted[finite]).max(initial=1e-30))
        np.testing.assert_allclose(
            actual[finite], wanted[finite], rtol=checked.tolerance,
            atol=checked.tolerance * largest, err_msg=message,
        )  # fmt: skip


def check(cases: Sequence[Case], folder: Path) -> None:
    """Compile all cases into one library and compare each with its reference."""
    from dlcc.tir.build import LLVMTarget, compile_object

    kernels = {f"k{i}": lower(c, f"k{i}") for i, c in enumerate(cases)}
    target = LLVMTarget("x86_64-unknown-linux-gnu", CPU)
    library = link(compile_object({n: k.func for n, k in kernels.items()}, target), folder)
    for (name, kernel), checked in zip(kernels.items(), cases, strict=True):
        compare(checked, run(checked, kernel, library[name]))
