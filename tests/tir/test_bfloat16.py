"""bfloat16 in TIR: the bits of every rounding, and default TIR on values stored so."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcc import tir
from dlcc.ir import BF16, BFLOAT16
from targets.cpu.levels import AVX2, AVX512BF16, SSE4
from tests.ops.tir_harness import Case, Operand, case, compare, constant, lower, rng, run
from tests.targets.running import isa_params, llvm_target
from tests.tir.linking import Library


def special() -> np.ndarray:
    """Ties, ends of ranges, infinities, NaN of both kinds, random bits."""
    words = [0, 0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0x7F7F7FFF, 0x7F800000]
    words += [0x7F800001, 0x7FC12345, 0x7FFFFFFF, 0x00800000, 0x0080FFFF]
    words += [w | 0x80000000 for w in words]
    random = rng(3).integers(0, 1 << 32, 998 - len(words), dtype=np.uint64)
    bits = np.concatenate([np.asarray(words, np.uint32), random.astype(np.uint32)])
    exponent = bits >> 23 & 0xFF
    return np.where(exponent == 0, bits & 0x80000000, bits).astype(np.uint32).view(np.float32)


def kernel(name: str, lanes: int, *, native: bool) -> Any:
    """name(x, y, z): y = bfloat16 bits of x, z = the numbers of y."""
    kb = tir.KernelBuilder(name, bfloat16=native)
    x, y, z = kb.pointer("x", "float32"), kb.pointer("y", "uint16"), kb.pointer("z", "float32")
    with kb.loop(kb.begin, kb.end, "i") as i:
        bits = kb.let(kb.rounded(kb.load(x, i * lanes, lanes), "bf16"), "bits")
        kb.store(y, i * lanes, bits)
        kb.store(z, i * lanes, tir.bfloat16.widened(bits))
    return kb.build()


@pytest.mark.parametrize("isa", isa_params(SSE4.name, AVX2.name, AVX512BF16.name))
def test_every_rounding_gives_the_same_bits(isa: Any, tmp_path: Path) -> None:
    native = isa.bfloat16 != "widen"
    functions = {f"k{n}": kernel(f"k{n}", n, native=native) for n in (1, 4, 16)}
    library = Library(tir.compile_object(functions, llvm_target(isa)), tmp_path)
    x = np.resize(special(), 1008)
    nan = np.isnan(x)
    want = BFLOAT16.encode(x)["values"].view(np.uint16)
    quiet = (x.view(np.uint32) >> 16 | 0x40).astype(np.uint16)
    want = np.where(nan, quiet, want)
    for lanes in (1, 4, 16):
        y, z = np.zeros(x.size, np.uint16), np.zeros(x.size, np.float32)
        library.call(f"k{lanes}", [x, y, z], 0, x.size // lanes)
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(z.view(np.uint32), want.astype(np.uint32) << 16)
        assert np.isnan(z[nan]).all()


def narrow(*shape: int, seed: int = 0, layout: str = "") -> Operand:
    """A random activation in bfloat16."""
    real = rng(seed).normal(size=shape).astype(np.float32)
    return Operand(BFLOAT16.encode(real)["values"], BFLOAT16, layout=layout)


def wide(*shape: int, seed: int = 0) -> Operand:
    return Operand(rng(seed).normal(size=shape).astype(np.float32))


def cases() -> list[Case]:
    """Ops that stand between layers; bfloat16 to itself, and to and from float32."""
    axes = {"axes": (2, 3), "keepdims": False}
    pool = {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
    row = {"axis": 1}
    norm = [constant(np.linspace(0.5, 2, 33).astype(np.float32)) for _ in range(2)]
    return [
        case("relu", [narrow(2, 19)], out=BFLOAT16),
        case("gelu", [narrow(3, 37)], out=BFLOAT16),
        case("add", [narrow(2, 5, 4, 4, layout="nhwc"), wide(1, 5, 1, 1)], out=BFLOAT16),
        case("mul", [wide(3, 7), narrow(3, 7, seed=1)], out=BFLOAT16),
        case("max_pool2d", [narrow(1, 6, 9, 8, layout="nhwc")], pool, out=BFLOAT16, layout="nhwc"),
        case("avg_pool2d", [narrow(1, 6, 9, 8)], pool, out=BFLOAT16),
        case("reduce_mean", [narrow(2, 6, 5, 4, layout="nhwc")], axes, out=BFLOAT16),
        case("reduce_max", [narrow(2, 6, 5, 4)], axes),
        case("softmax", [narrow(4, 33)], row, out=BFLOAT16),
        case("layer_norm", [narrow(4, 33), *norm], row, out=BFLOAT16),
        case("concat", [narrow(2, 3), wide(2, 5)], row, out=BFLOAT16),
        case("pad", [narrow(3, 5)], {"pads": (0, 1, 1, 2), "value": -0.5}, out=BFLOAT16),
        case("transpose", [narrow(3, 5, 2)], {"perm": (2, 0, 1)}, out=BFLOAT16),
        case("cast", [narrow(3, 9)], {"to": "f32"}),
        case("matmul", [narrow(2, 3, 8), wide(8, 5)]),
        case("matmul", [wide(3, 8), narrow(2, 8, 5)], out=BFLOAT16),
    ]


def test_default_tir(tmp_path: Path) -> None:
    made = cases()
    kernels = {f"k{i}": lower(c, f"k{i}") for i, c in enumerate(made)}
    target = tir.LLVMTarget("x86_64-unknown-linux-gnu", "x86-64-v3")
    library = Library(tir.compile_object({n: k.func for n, k in kernels.items()}, target), tmp_path)
    shared: ctypes.CDLL = library.handle
    for (name, built), checked in zip(kernels.items(), made, strict=True):
        got = run(checked, built, shared[name])
        if checked.node.output.type.is_bfloat16:  # one unit in the last place, where sums differ
            checked.tolerance = 2**-7
            got = [g.view(BF16.numpy).astype(np.float32) for g in got]
            checked.expected = [w.astype(np.float32) for w in _reference(checked)]
            np.testing.assert_allclose(got[0], checked.expected[0], rtol=2**-7, atol=1e-6)
        else:
            compare(checked, got)


def _reference(checked: Case) -> list[np.ndarray]:
    from tests.ops.tir_harness import reference

    return reference(checked)
