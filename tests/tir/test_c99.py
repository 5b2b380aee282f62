"""TIR printed as C: what the text looks like, and what cannot be printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dlcc import tir
from dlcc.driver import print_sources
from dlcc.errors import DlccError, ExitCode
from dlcc.tir.c99 import Unprintable, print_kernel
from dlcc.tir.c99.expressions import literal
from targets import get_target

Body = Callable[[Any, Any, Any, Any], None]


def function(body: Body, dtype: str = "int32") -> Any:
    """A kernel that runs ``body(builder, x, y, item)`` for each item."""
    kb = tir.KernelBuilder("k")
    x, y = kb.pointer("x", dtype, align=4), kb.pointer("y", dtype, align=4)
    with kb.loop(kb.begin, kb.end, "item") as item:
        body(kb, x, y, item)
    return kb.build()


def printed(body: Body, dtype: str = "int32") -> list[str]:
    """Its lines inside the loop over 5 items."""
    source = print_kernel("k", function(body, dtype), 5)
    head, *lines, end = source.body.splitlines()
    assert (head, end) == ("  for (int32_t item = 0; item < 5; item++) {", "  }")
    return [line.removeprefix("    ") for line in lines]


def test_a_sum_is_declared_with_its_first_value() -> None:
    def body(kb: Any, x: Any, y: Any, item: Any) -> None:
        total = kb.alloc("int32", 1, "sum")
        kb.store(total, 0, kb.load(x, item))
        first = kb.let(tir.tirx.max(item, 2), "first")
        with kb.loop(first, 7, "tap") as tap:
            kb.store(total, 0, kb.load(total, 0) + kb.load(x, item * 7 + tap))
        kb.store(y, item, kb.load(total, 0))

    assert printed(body) == [
        "int32_t sum = x[item];",
        "const int32_t first = max_i32(item, 2);",
        "for (int32_t tap = first; tap < 7; tap++) {",
        "  sum += x[item * 7 + tap];",
        "}",
        "y[item] = sum;",
    ]


def test_names_are_free_again_after_their_block() -> None:
    def body(kb: Any, x: Any, y: Any, item: Any) -> None:
        for _ in range(2):
            with kb.loop(0, 3, "x") as inner:  # x is taken by the parameter
                kb.store(y, inner, kb.let(kb.load(x, inner), "value"))

    once = [
        "for (int32_t x2 = 0; x2 < 3; x2++) {",
        "  const int32_t value = x[x2];",
        "  y[x2] = value;",
        "}",
    ]
    assert printed(body) == [*once, *once]


def test_keywords_of_either_language_are_no_names() -> None:
    def body(kb: Any, x: Any, y: Any, item: Any) -> None:
        for word in ("new", "register"):
            kb.store(y, item, kb.let(kb.load(x, item), word))

    lines = printed(body)
    assert lines[0] == "const int32_t new2 = x[item];"
    assert lines[2] == "const int32_t register2 = x[item];"


def test_narrow_numbers_are_cut_back_and_huge_constants_wrap() -> None:
    def narrow(kb: Any, x: Any, y: Any, item: Any) -> None:
        kb.store(y, item, kb.load(x, item) + kb.load(x, item + 1))

    def huge(kb: Any, x: Any, y: Any, item: Any) -> None:
        kb.store(y, item, kb.load(x, item) - kb.const(0x4B400000, "int32"))

    assert printed(narrow, "uint8") == ["y[item] = (uint8_t)(x[item] + x[item + 1]);"]
    assert printed(huge) == ["y[item] = wrapped_sub_i32(x[item], INT32_C(1262485504));"]


def test_what_nobody_reads_is_not_written() -> None:
    def body(kb: Any, x: Any, y: Any, item: Any) -> None:
        unused = kb.let(kb.load(x, item), "unused")
        kb.let(unused + 1, "neither")
        kb.store(y, item, kb.const(1, "int32"))

    source = print_kernel("k", function(body), 5)
    assert "unused" not in source.body
    assert source.body.splitlines()[0] == "  (void)x;"
    assert source.types == ("const int32_t", "int32_t")
    assert source.parameters == ["const int32_t *restrict x", "int32_t *restrict y"]


def test_a_guarded_value_is_computed_under_its_guard() -> None:
    def body(kb: Any, x: Any, y: Any, item: Any) -> None:
        name = tir.tirx.Var("v", "int32")
        inside = tir.tirx.Let(name, kb.load(x, item - 1), name * name)
        kb.store(y, item, tir.tirx.if_then_else(item > 0, inside, kb.const(0, "int32")))

    assert printed(body) == [
        "int32_t chosen;",
        "if (item > 0) {",
        "  const int32_t v = x[item - 1];",
        "  chosen = v * v;",
        "} else {",
        "  chosen = 0;",
        "}",
        "y[item] = chosen;",
    ]


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (0.1, "float32", "0.1f"),
        (2.0, "float32", "2.0f"),
        (1e20, "float32", "1e+20f"),
        (-float("inf"), "float32", "f32_of_bits(0xFF800000u)"),
        (0.1, "float64", "0.1"),
        (-(2**31), "int32", "(-INT32_C(2147483647) - 1)"),
        (40000, "int32", "INT32_C(40000)"),
        (-(2**63), "int64", "(-INT64_C(9223372036854775807) - 1)"),
        (7, "uint64", "UINT64_C(7)"),
        (2**32 - 1, "uint32", "UINT32_C(4294967295)"),
        (1.0, "float16", f"{int(np.float16(1).view(np.uint16))}u"),
    ],
)
def test_literals(value: float, dtype: str, text: str) -> None:
    assert literal(value, dtype)[0] == text


def vectors(kb: Any, x: Any, y: Any, item: Any) -> None:
    kb.store(y, item * 4, kb.load(x, item * 4, 4))


def instruction(kb: Any, x: Any, y: Any, item: Any) -> None:
    kb.store(y, item, kb.pure("llvm.arm.qadd", "int32", 1, kb.load(x, item), kb.load(x, item)))


def effect(kb: Any, x: Any, y: Any, item: Any) -> None:
    kb.prefetch(x, item)


@pytest.mark.parametrize(
    ("body", "dtype", "why"),
    [
        (vectors, "int32", "Ramp|int32x4"),
        (instruction, "int32", "calls of arm.qadd"),
        (effect, "int32", "calls for their effect"),
        (lambda kb, x, y, i: kb.store(y, i, kb.load(x, i) * kb.load(x, i)), "float16", "16-bit"),
    ],
)
def test_code_for_a_machine_cannot_be_printed(body: Body, dtype: str, why: str) -> None:
    with pytest.raises(Unprintable, match=why):
        print_kernel("k", function(body, dtype), 5)


def test_the_user_is_told_which_target_has_portable_kernels() -> None:
    with pytest.raises(DlccError, match="cannot be written as portable C") as caught:
        print_sources({"k": function(vectors)}, {"k": 5}, get_target("cpu:avx2"))
    assert caught.value.code == ExitCode.UNSUPPORTED
    assert "--target c" in caught.value.fix
