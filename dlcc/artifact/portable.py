"""A network as portable C99: ``<name>.c``, ``<name>.h`` and ``<name>_weights.h``.

The kernels come printed (:class:`dlcc.program.KernelSource`); here they get names, their constants
become arrays, and :mod:`dlcc.artifact.bare` adds the public functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import numpy as np

from dlcc.artifact.bare import bare_header, bare_runtime, check_bare
from dlcc.artifact.literals import c_comment
from dlcc.artifact.manifest import compiler_name
from dlcc.errors import DlccError, ExitCode
from dlcc.program import Arg, Program, Step

MOST_BYTES = 48 << 20
"""Constants from which a C compiler takes minutes and gigabytes: every byte is some text."""

_COLUMNS = 100
_DTYPES = {"float": np.float32, "double": np.float64} | {
    f"{sign}int{bits}_t": np.dtype(f"{sign}int{bits}").type
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}

PREAMBLE = """\
/* Every floating-point operation rounds by itself, on every machine: nothing is contracted to a
 * fused multiply-add. Integer results do not depend on this at all. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#else
#pragma STDC FP_CONTRACT OFF
#endif
#ifdef __FAST_MATH__
#error "compile without -ffast-math: it changes results"
#endif
"""


def c_files(program: Program, symbol: str) -> dict[str, bytes]:
    """The files of ``program`` as C, by name.

    Args:
        program: lowered for one thread, with the C of every kernel.
        symbol: its C name.

    Raises:
        DlccError: UNSUPPORTED for more constants than a C compiler takes; INTERNAL for a program
            that was lowered for another runtime.
    """
    check_bare(program)
    if len(program.weights) > MOST_BYTES:
        raise DlccError(
            ExitCode.UNSUPPORTED,
            "the network is too large for C source",
            why=f"its constants have {len(program.weights)} bytes, C compilers take {MOST_BYTES}",
            fix="use a library (--emit a) of a target with machine code, or compress the weights",
        )
    writer = _Writer(program, symbol)
    source = writer.source()
    return {
        f"{symbol}.h": bare_header(program, symbol, alignment=writer.alignment()).encode(),
        f"{symbol}.c": source.encode(),
        f"{symbol}_weights.h": writer.weights().encode(),
    }


@cache
def _functions() -> dict[str, str]:
    """The functions of arithmetic.c, with their comments, by name."""
    text = files("dlcc.runtime").joinpath("c", "bare", "arithmetic.c").read_text("utf-8")
    found = re.findall(
        r"^(/\*(?:[^*]|\*[^/])*\*/\nstatic inline \w+ (\w+)\(.*?\}\n)(?=\n|\Z)", text, re.M | re.S
    )
    return {name: body for body, name in found}


def needed_functions(texts: Iterable[str]) -> list[str]:
    """The functions of arithmetic.c that ``texts`` call, and those call, in their order there."""
    known, wanted = _functions(), set[str]()
    open_texts = list(texts)
    while open_texts:
        called = set(re.findall(r"\b(\w+)\(", open_texts.pop())) & known.keys() - wanted
        wanted |= called
        open_texts += [known[name] for name in called]
    return [text for name, text in known.items() if name in wanted]


def _identifier(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z]+", "_", text).strip("_") or "layer"


@dataclass
class _Writer:
    program: Program
    symbol: str
    _names: dict[str, str] = field(default_factory=dict)
    _arrays: dict[tuple[int, str], str] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)

    @cached_property
    def _layers(self) -> dict[str, Any]:
        """Rows of the report by layer."""
        rows: Any = self.program.report.get("layers", [])
        return {row.get("layer"): row for row in reversed(rows)}

    def _fresh(self, stem: str, numbered: bool = False) -> str:
        name, count = f"{stem}_1" if numbered else stem, 1
        while name in self._taken or name in _functions():
            count += 1
            name = f"{stem}_{count}"
        self._taken.add(name)
        return name

    def alignment(self) -> int:
        """Bytes of the largest type that a kernel accesses."""
        types = {t.removeprefix("const ") for s in self.program.sources.values() for t in s.types}
        return max((np.dtype(_DTYPES[t]).itemsize for t in types), default=1)

    # -- kernels --------------------------------------------------------------------------------

    def source(self) -> str:
        """``<name>.c``."""
        sources = self.program.sources
        calls: dict[str, list[Step]] = {}
        for step in self.program.steps:
            assert isinstance(step, Step), "check_bare refuses fused steps"
            calls.setdefault(step.function, []).append(step)
        stems = [_stem(function) for function in calls]
        self._names = {
            f: self._fresh(s, stems.count(s) > 1) for f, s in zip(calls, stems, strict=True)
        }
        kernels = [self._kernel(function, steps) for function, steps in calls.items()]
        runtime = bare_runtime(self.program, self.symbol, self._call, self._remark)
        functions = needed_functions(sources[function].body for function in calls)
        return "\n".join(
            [
                f"/* {c_comment(self.program.name)}, compiled by {compiler_name()}.",
                " * Portable C99 that needs no library. See the header for how to call it. */",
                f'#include "{self.symbol}.h"',
                f'#include "{self.symbol}_weights.h"',
                "",
                PREAMBLE,
                *functions,
                *kernels,
                runtime,
            ]
        )

    def _kernel(self, function: str, steps: list[Step]) -> str:
        source = self.program.sources[function]
        layers = ", ".join(dict.fromkeys(step.layer for step in steps))
        comment = _wrapped(f"/* {c_comment(layers)}", " * ") + " */"
        head = f"static void {self._names[function]}("
        body = "\n".join(_wrapped(line) for line in source.body.splitlines())
        listed = f",\n{' ' * len(head)}".join(source.parameters)
        return f"{comment}\n{head}{listed}) {{\n{body}\n}}\n"

    # -- calls ----------------------------------------------------------------------------------

    def _call(self, step: Step) -> str:
        types = self.program.sources[step.function].types
        addresses = [self._address(step, arg, t) for arg, t in zip(step.args, types, strict=True)]
        return _wrapped(f"{self._names[step.function]}({', '.join(addresses)});", "    ", 94)

    def _address(self, step: Step, arg: Arg, c_type: str) -> str:
        if arg.kind == "weights":
            return self._array(step, arg.offset, c_type.removeprefix("const "))
        if arg.kind == "arena":
            return f"(void *)(arena + {arg.offset})" if arg.offset else "(void *)arena"
        return f"{arg.kind}s[{arg.index}]"

    def _array(self, step: Step, offset: int, c_type: str) -> str:
        """The name of the constant at ``offset``, as elements of ``c_type``."""
        key = (offset, c_type)
        if key not in self._arrays:
            entry = next(e for e in self.program.weight_entries if e.offset == offset)
            stem = f"{_identifier(entry.layer)}_{_identifier(entry.name)}"
            self._arrays[key] = self._fresh(stem.lower()[-60:].lstrip("_0123456789"))
        return self._arrays[key]

    def _remark(self, index: int) -> str:
        step = self.program.steps[index]
        row: Any = self._layers.get(step.layer, {})
        shapes = f": {_shape(row['inputs'][0])} -> {_shape(row['outputs'][0])}" if row else ""
        return c_comment(f"{step.layer}{shapes}")

    # -- constants ------------------------------------------------------------------------------

    def weights(self) -> str:
        """``<name>_weights.h``; :meth:`source` has named the arrays."""
        guard = f"DLCC_WEIGHTS_{self.symbol.upper()}_H"
        parts = [
            f"/* Constants of {c_comment(self.program.name)}, as its kernels read them. */",
            f"#ifndef {guard}\n#define {guard}\n\n#include <stdint.h>\n",
        ]
        sizes = {entry.offset: entry for entry in self.program.weight_entries}
        for (offset, c_type), name in self._arrays.items():
            entry = sizes[offset]
            raw = self.program.weights[offset : offset + entry.size]
            numbers = np.frombuffer(raw, np.dtype(_DTYPES[c_type]).newbyteorder("<"))
            encoding = f", {entry.encoding}" if entry.encoding else ""
            parts.append(f"/* {c_comment(f'{entry.layer}: {entry.name}{encoding}')} */")
            parts.append(array_text(name, c_type, numbers))
        return "\n".join([*parts, "#endif\n"])


def _stem(function: str) -> str:
    """The name of a kernel without the hash of what determines it."""
    return _identifier(re.sub(r"_[0-9a-f]{16}$", "", function).removeprefix("te_"))


def _shape(type_text: str) -> str:
    """A type of the report for a reader of C: how its elements are stored, and the shape."""
    found = re.match(r"(\w+)(\[.*?\])(!affine<bits=(\d+), signed=(\w))?", type_text)
    if found is None:
        return type_text
    dtype, shape, _, bits, signed = found.groups()
    return f"{dtype if bits is None else ('s' if signed == 't' else 'u') + bits}{shape}"


def array_text(name: str, c_type: str, numbers: np.ndarray) -> str:
    """The definition of a constant array."""
    rows = _filled([f"{text}," for text in _literals(c_type, numbers)])
    body = "".join(f"  {row}\n" for row in rows)
    return f"static const {c_type} {name}[{len(numbers)}] = {{\n{body}}};\n"


def _literals(c_type: str, numbers: np.ndarray) -> list[str]:
    if c_type in ("float", "double"):
        suffix = "f" if c_type == "float" else ""
        return [_real(number, suffix) for number in numbers]
    macro = c_type.removesuffix("_t").upper() + "_C"
    if c_type.endswith(("8_t", "16_t")):
        return list(map(str, numbers.tolist()))
    lowest = np.iinfo(numbers.dtype).min
    return [
        str(n) if abs(n) < 1 << 15 else f"{macro}({n})" if n != lowest else f"{macro}({n + 1}) - 1"
        for n in numbers.tolist()
    ]


def _real(number: Any, suffix: str) -> str:
    if np.isnan(number):
        return f"0.0{suffix} / 0.0{suffix}"
    if np.isinf(number):
        return f"{'-' if number < 0 else ''}1.0{suffix} / 0.0{suffix}"
    text = str(number)  # the fewest digits that mean this number and no other
    return (text if any(c in text for c in ".e") else f"{text}.0") + suffix


def _filled(words: list[str]) -> list[str]:
    """``words`` in lines of the width of a page."""
    lines: list[str] = []
    row: list[str] = []
    width = 2
    for word in words:
        if row and width + len(word) + 1 > _COLUMNS:
            lines.append(" ".join(row))
            row, width = [], 2
        row.append(word)
        width += len(word) + 1
    return [*lines, " ".join(row)] if row else lines


def _wrapped(line: str, indent: str = "", columns: int = _COLUMNS) -> str:
    """``line`` broken at spaces; what follows stands 4 columns further in (or by ``indent``)."""
    own = line[: len(line) - len(line.lstrip())]
    further = indent or own + "    "
    lines = []
    while len(line) > columns:
        cut = line.rfind(" ", len(further) + 1, columns + 1)
        if cut <= len(further):
            break
        lines.append(line[:cut])
        line = further + line[cut + 1 :]
    return "\n".join([*lines, line])


__all__ = ["MOST_BYTES", "array_text", "c_files", "needed_functions"]
