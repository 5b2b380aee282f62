"""TIR expressions as C: every conversion is written out, and nothing depends on the machine.

Arithmetic of fewer than 32 bits is done in ``int`` and cut back. Floating-point operations round by
themselves: a file that holds them forbids contraction, and :func:`dlcc.tir.separate` is a cast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlcc.tir.c99.names import SHORT, TYPES, Names

PRIMARY, UNARY, TIMES, PLUS, COMPARE, EQUAL, AND, OR, CHOICE = range(9, 0, -1)
"""Precedences, as far as it is safe to rely on them: bit operations always stand in brackets."""

_HUGE = 1 << 28
"""Constants from here on are no sizes: they are added to the bits of floats, modulo 2^32."""

Text = tuple[str, int]
"""C and its precedence."""


class Unprintable(Exception):
    """Code that is made for one machine: vectors, its instructions."""


_BINARY = {
    "Add": ("+", PLUS),
    "Sub": ("-", PLUS),
    "Mul": ("*", TIMES),
    "Div": ("/", TIMES),
    "Mod": ("%", TIMES),
    "LT": ("<", COMPARE),
    "LE": ("<=", COMPARE),
    "GT": (">", COMPARE),
    "GE": (">=", COMPARE),
    "EQ": ("==", EQUAL),
    "NE": ("!=", EQUAL),
    "And": ("&&", AND),
    "Or": ("||", OR),
}
_BITS = {"bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^"}
_NODES = {
    "LShift": "shift_left",
    "RShift": "shift_right",
    "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
}
"""Expressions that TIR has as calls too."""

_WRAPPED = {"Add": "wrapped_add_i32", "Sub": "wrapped_sub_i32", "Mul": "wrapped_mul_i32"}
_FUNCTIONS = {
    "nearbyint": "rint",
    "rint": "rint",
    "round": "rint",
    "trunc": "trunc",
    "floor": "floor",
    "ceil": "ceil",
    "sqrt": "sqrt",
    "fabs": "abs",
}
"""What libm and LLVM call a function (``floorf``, ``llvm.floor``), and arithmetic.c."""


def dtype_of(expression: Any) -> str:
    """The scalar type of an expression.

    Raises:
        Unprintable: it is a vector, or of a type that C does not have.
    """
    dtype = str(expression.ty.dtype)
    if dtype not in TYPES:
        raise Unprintable(f"values of type {dtype}")
    return dtype


def literal(value: float, dtype: str) -> Text:
    """A constant as C, and the functions it needs come from :func:`functions_of`."""
    if dtype == "float16":
        return f"{int(np.array(value, np.float16).view(np.uint16))}u", PRIMARY
    if dtype.startswith("float"):
        return _float_literal(value, dtype)
    number = int(value)
    if dtype == "int64":
        if number == -(1 << 63):
            return "(-INT64_C(9223372036854775807) - 1)", PRIMARY
        return f"INT64_C({number})", PRIMARY
    if dtype == "uint64":
        return f"UINT64_C({number})", PRIMARY
    if dtype == "uint32":
        return f"UINT32_C({number})" if number >= 1 << 16 else f"{number}u", PRIMARY
    if number == -(1 << 31):
        return "(-INT32_C(2147483647) - 1)", PRIMARY
    text = str(number) if abs(number) < 1 << 15 else f"INT32_C({number})"
    return text, PRIMARY if number >= 0 else UNARY


def _float_literal(value: float, dtype: str) -> Text:
    if not np.isfinite(value):
        if dtype == "float32":
            bits = int(np.array([value], np.float32).view(np.uint32)[0])
            return f"f32_of_bits(0x{bits:08X}u)", PRIMARY
        wide = int(np.array([value], np.float64).view(np.uint64)[0])
        return f"f64_of_bits(UINT64_C(0x{wide:016X}))", PRIMARY
    text = repr(float(value)) if dtype == "float64" else str(np.float32(value))
    if not any(c in text for c in ".e"):
        text += ".0"
    negative = text.startswith("-")
    return text + ("f" if dtype == "float32" else ""), UNARY if negative else PRIMARY


@dataclass
class Expressions:
    """Prints expressions; what has to stand before the statement goes to ``lines``.

    Attributes:
        names: of the variables.
        lines: statements before the one that is being printed.
        element: prints an access to an element of a buffer.
        used: variables that were printed.
    """

    names: Names
    element: Callable[[Any, Any], str]
    lines: list[str] = field(default_factory=list)
    used: set[Any] = field(default_factory=set)

    def text(self, expression: Any, room: int = CHOICE) -> str:
        """``expression``, in brackets where it binds less than ``room``."""
        text, precedence = self._print(expression)
        return text if precedence >= room else f"({text})"

    def _print(self, e: Any) -> Text:
        kind = type(e).__name__
        if kind in ("IntImm", "FloatImm"):
            return literal(e.value, dtype_of(e))
        if kind == "Var":
            self.used.add(e)
            return self.names.of(e), PRIMARY
        if kind in _BINARY:
            return self._binary(kind, e)
        if kind in _NODES:
            return self._intrinsic(_NODES[kind], [e.a, e.b], e)
        method = getattr(self, f"_{kind.lower()}", None)
        if method is None:
            raise Unprintable(f"expressions of kind {kind}")
        made: Text = method(e)
        return made

    def _binary(self, kind: str, e: Any) -> Text:
        operator, precedence = _BINARY[kind]
        dtype = _computable(e.a)
        if kind == "NE" and dtype in ("float32", "float64"):
            return self._call_text(f"differ_{SHORT[dtype]}", e.a, e.b)
        if kind == "Sub" and type(e.a).__name__ == "IntImm" and not e.a.value and dtype in SHORT:
            return f"-{self.text(e.b, UNARY + 1)}", UNARY
        if kind in _WRAPPED and dtype == "int32" and (_is_huge(e.a) or _is_huge(e.b)):
            return self._call_text(_WRAPPED[kind], e.a, e.b)
        bracketed = kind == "Or" and type(e.a).__name__ == "And"  # compilers warn without
        room = PLUS if precedence in (COMPARE, EQUAL) else precedence
        left = self.text(e.a, EQUAL if bracketed else room)
        if precedence in (AND, OR):
            right = self._second(e.b)
        else:
            right = self.text(e.b, max(precedence + 1, PLUS))
        text = f"{left} {operator} {right}"
        if precedence >= PLUS and dtype not in SHORT:
            return f"({TYPES[dtype]})({text})", UNARY
        return text, precedence

    def _second(self, e: Any) -> str:
        """The right side of ``&&`` and ``||``: of it only what can do no harm is computed before.

        Raises:
            Unprintable: it names a value that it reads from memory, or divides for.
        """
        before = len(self.lines)
        text = self.text(e, EQUAL)
        if any(c in line for line in self.lines[before:] for c in "[/%"):
            raise Unprintable("a condition whose second part needs statements of its own")
        return text

    def _call_text(self, function: str, *arguments: Any) -> Text:
        return f"{function}({', '.join(self.text(a) for a in arguments)})", PRIMARY

    def _max(self, e: Any) -> Text:
        return self._extreme("max", e)

    def _min(self, e: Any) -> Text:
        return self._extreme("min", e)

    def _extreme(self, name: str, e: Any) -> Text:
        dtype = _computable(e)
        if dtype in SHORT:
            return self._call_text(f"{name}_{SHORT[dtype]}", e.a, e.b)
        return f"({TYPES[dtype]}){name}_i32({self.text(e.a)}, {self.text(e.b)})", UNARY

    def _not(self, e: Any) -> Text:
        return f"!{self.text(e.a, UNARY)}", UNARY

    def _cast(self, e: Any) -> Text:
        source, dtype = dtype_of(e.value), dtype_of(e)
        if source == dtype:
            return self._print(e.value)
        value, precedence = self._print(e.value)
        if source == "float16":
            value, precedence, source = f"f32_of_f16({value})", PRIMARY, "float32"
        if dtype == "float16":
            if source == "float64":
                raise Unprintable("doubles rounded to 16 bits")
            return f"f16_of_f32({value})", PRIMARY
        if dtype == source:
            return value, precedence
        if dtype == "bool":
            return f"{value if precedence >= PLUS else f'({value})'} != 0", EQUAL
        return f"({TYPES[dtype]}){value if precedence >= UNARY else f'({value})'}", UNARY

    def _tensorload(self, e: Any) -> Text:
        dtype_of(e)
        return self.element(e.source, e.indices), PRIMARY

    def _select(self, e: Any) -> Text:
        return self._choice(e.condition, e.true_value, e.false_value)

    def _choice(self, condition: Any, yes: Any, no: Any) -> Text:
        """``condition ? yes : no``; as statements where a branch has some of its own."""
        test = self.text(condition, COMPARE)
        outer, branches = self.lines, []
        for branch in (yes, no):
            self.lines = []
            branches.append((self.text(branch, COMPARE), self.lines))
        self.lines = outer
        if not any(lines for _, lines in branches):
            return f"{test} ? {branches[0][0]} : {branches[1][0]}", CHOICE
        name = self.names.fresh("chosen")
        outer.append(f"{TYPES[dtype_of(yes)]} {name};")
        for head, (text, lines) in zip((f"if ({test}) {{", "} else {"), branches, strict=True):
            outer += [head, *(f"  {line}" for line in lines), f"  {name} = {text};"]
        outer.append("}")
        return name, PRIMARY

    def _let(self, e: Any) -> Text:
        value = self.text(e.value)
        name = self.names.give(e.var)
        self.lines.append(f"const {TYPES[dtype_of(e.value)]} {name} = {value};")
        return self._print(e.body)

    def _call(self, e: Any) -> Text:
        name, args = str(e.op.name).rpartition(".")[2], list(e.args)
        if name in ("call_llvm_pure_intrin", "call_llvm_intrin"):
            return self._intrinsic(_intrinsic_name(args[0]), args[1:], e)
        if name in ("call_pure_extern", "call_extern"):
            return self._intrinsic(_stem(str(args[0].value), dtype_of(e)), args[1:], e)
        return self._intrinsic(name, args, e)

    def _intrinsic(self, name: str, args: list[Any], e: Any) -> Text:
        dtype = dtype_of(e)
        if name in _BITS:
            left, right = (self.text(a, UNARY) for a in args)
            text = f"{left} {_BITS[name]} {right}"
            return (text, CHOICE) if dtype in SHORT else (f"({TYPES[dtype]})({text})", UNARY)
        if name == "bitwise_not":
            return f"({TYPES[dtype]})~{self.text(args[0], UNARY)}", UNARY
        if name in ("shift_left", "shift_right"):
            return self._shift(name, args, dtype)
        if name == "if_then_else":
            return self._choice(*args)
        if name in ("dlcc_separate", "arithmetic.fence"):
            return f"({TYPES[dtype]}){self.text(args[0], PRIMARY)}", UNARY
        if name == "reinterpret":
            return self._reinterpret(args[0], dtype)
        if name == "lrint" and dtype_of(args[0]) == "float32" and dtype == "int32":
            return self._call_text("rint_i32", args[0])
        if name == "likely":
            return self._print(args[0])
        if name in _FUNCTIONS and dtype in ("float32", "float64"):
            return self._call_text(f"{_FUNCTIONS[name]}_{SHORT[dtype]}", *args)
        raise Unprintable(f"calls of {name}")

    def _shift(self, name: str, args: list[Any], dtype: str) -> Text:
        if dtype in ("int32", "int64"):
            return self._call_text(f"{name}_{SHORT[dtype]}", *args)
        operator = "<<" if name == "shift_left" else ">>"
        text = f"{self.text(args[0], UNARY)} {operator} {self.text(args[1], UNARY)}"
        return (text, CHOICE) if dtype in SHORT else (f"({TYPES[dtype]})({text})", UNARY)

    def _reinterpret(self, value: Any, dtype: str) -> Text:
        source = dtype_of(value)
        if source == dtype:
            return self._print(value)
        text, unsigned = self.text(value), f"u{dtype.removeprefix('u')}"
        if source in ("float32", "float64"):
            text = f"bits_of_{SHORT[source]}({text})"
        elif source.startswith("int"):
            text = f"({TYPES['u' + source]}){self.text(value, UNARY)}"
        if dtype in ("float32", "float64"):
            return f"{SHORT[dtype]}_of_bits({text})", PRIMARY
        if dtype == unsigned:
            return text, UNARY
        if dtype in SHORT:
            return f"{SHORT[dtype]}_of_bits({text})", PRIMARY
        return f"({TYPES[dtype]}){self.text(value, UNARY)}", UNARY


def _computable(expression: Any) -> str:
    """The scalar type of an operand of arithmetic."""
    dtype = dtype_of(expression)
    if dtype == "float16":
        raise Unprintable("arithmetic on 16-bit floats")
    return dtype


def _is_huge(e: Any) -> bool:
    return type(e).__name__ == "IntImm" and abs(int(e.value)) >= _HUGE


def _stem(name: str, dtype: str) -> str:
    """What libm calls a function, without the suffix of its type."""
    return name.removesuffix("f") if dtype == "float32" else name


def _intrinsic_name(argument: Any) -> str:
    """What LLVM calls an intrinsic, without its prefix and types."""
    import tvm

    if type(argument).__name__ == "StringImm":
        text = str(argument.value)
    else:
        text = str(tvm.target.codegen.llvm_get_intrinsic_name(int(argument.value)))
    return text.removeprefix("llvm.")
