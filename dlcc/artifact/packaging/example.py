"""The example program of an artifact, and the recorded numbers that it checks."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

import numpy as np

from dlcc.artifact.check import dtype_of, tensor_bytes
from dlcc.artifact.literals import c_comment, c_string
from dlcc.artifact.packaging.facts import EXAMPLE, EXAMPLE_DATA, Delivery
from dlcc.program import Sample, TensorInfo

Array = np.ndarray[Any, Any]

_C_TYPES: Final = {"float32": "float", "float64": "double", "bool": "uint8_t"}
_WIDTH, _PER_LINE = 96, 8
_START = " && ./example"

_READERS: Final = {
    "float16": """  const unsigned bits = ((const uint16_t *)data)[i];
  int exponent = bits >> 10 & 31;
  double number = (bits & 0x3ff) + (exponent > 0 ? 1024 : 0);
  if (exponent == 31) return number > 1024 ? NAN : bits >> 15 ? -INFINITY : INFINITY;
  for (number /= 16777216; exponent > 1; exponent--) number *= 2;
  return bits >> 15 ? -number : number;""",
    "bfloat16": """  const uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
  float number;
  memcpy(&number, &bits, sizeof number);
  return number;""",
}
"""Bodies of functions that read element ``i`` of a type that C does not have."""

_CHECK_BYTES: Final = """
static int check_bytes(const char *name, const void *got, const void *want, size_t bytes) {
  if (memcmp(got, want, bytes) == 0) return 0;
  fprintf(stderr, "example: %s is not the recorded output\\n", name);
  return 1;
}
"""
_CHECK_NUMBERS: Final = """
/* The largest difference may be `tolerance` times the largest recorded number. */
static int check_numbers(const char *name, double (*element)(const void *, size_t),
                         const void *got, const void *want, size_t count, double tolerance) {
  double largest = 0, worst = 0;
  size_t i;
  for (i = 0; i < count; i++) {
    const double a = element(got, i), b = element(want, i);
    const double difference = a == b || (a != a && b != b) ? 0 : a < b ? b - a : a - b;
    const double magnitude = b < 0 ? -b : b;
    if (magnitude > largest && magnitude < INFINITY) largest = magnitude;
    if (!(difference <= worst)) worst = difference == difference ? difference : INFINITY;
  }
  if (worst <= tolerance * largest) return 0;
  fprintf(stderr, "example: %s differs by %g from the recorded output, %g is allowed\\n", name,
          worst, tolerance * largest);
  return 1;
}
"""


def example_files(delivery: Delivery) -> dict[str, str]:
    """The example program and, where there is a recorded input, its numbers."""
    sources = {EXAMPLE: _program(delivery)}
    if delivery.sample is not None:
        sources[EXAMPLE_DATA] = _data(delivery, delivery.sample)
    return sources


def _program(delivery: Delivery) -> str:
    program, sample = delivery.program, delivery.sample
    values = {
        "title": c_comment(program.name),
        "and_sample": " and on a recorded input" if sample else "",
        "command": delivery.build(delivery.kind) + ("" if delivery.board_flags else _START),
        "story": _comment_lines(_story(delivery)),
        "data_header": f'#include "{EXAMPLE_DATA}"\n' if sample else "",
        "buffers": _buffers(delivery),
        "readers": "\n\n".join(dict.fromkeys(_reader(t) for t in program.outputs)),
        "check": _check(program.outputs, sample) if sample else "",
        "main": _main(delivery),
        "name": delivery.symbol,
        "NAME": delivery.macro,
    }
    return _fill("example.c.in", values)


def _fill(template: str, values: Mapping[str, str]) -> str:
    text = files("dlcc.runtime").joinpath("c", template).read_text("utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _story(delivery: Delivery) -> str:
    if delivery.sample is None:
        return "No input was recorded (--sample none). Ends with status 1 if a call fails, else 0."
    exact = not any(delivery.sample.tolerances)
    rule = (
        "the very bytes, which are the same on every target"
        if exact
        else "within the tolerance that stands beside each output in check() below"
    )
    return (
        f"The recorded input is {delivery.sample.source}; the recorded output is what dlcc's "
        f"reference, not this library, computes from it. Ends with status 0 if the library gives "
        f"that output ({rule}), else with 1."
    )


def _comment_lines(text: str) -> str:
    lines = textwrap.wrap(c_comment(text), _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f" * {line}" for line in lines)


def _main(delivery: Delivery) -> str:
    shows = [
        f"  show({c_string(t.name)}, {_reader_name(t)}, outputs[{i}], {t.elements});"
        for i, t in enumerate(delivery.program.outputs)
    ]
    instance = "" if delivery.bare else "net, "
    recorded = f'  if (!failed) failed = run({instance}recorded, "recorded input") || check();'
    values = {
        "shows": "\n".join(shows),
        "arguments": "void" if delivery.embed else "int argc, char **argv",
        "weights": "NULL" if delivery.embed else "argc > 1 ? argv[1] : NULL",
        "weights_story": "The weights are in the library."
        if delivery.embed
        else f"NULL: {delivery.symbol}.weights in the working directory.",
        "recorded": recorded if delivery.sample else "",
    }
    folder = "bare/" if delivery.bare else ""
    return _fill(f"{folder}example_main.c.in", values).rstrip()


# -- buffers and checks ------------------------------------------------------------------------


def _c_type(info: TensorInfo) -> str:
    """The C type of an element; the bits as an unsigned integer where C has no such type."""
    dtype = dtype_of(info)
    if dtype.kind in "iu":
        return f"{'u' if dtype.kind == 'u' else ''}int{8 * dtype.itemsize}_t"
    return _C_TYPES.get(dtype.name, f"uint{8 * dtype.itemsize}_t")


def _room(info: TensorInfo) -> int:
    return max(1, info.elements)  # C has no empty arrays


def _buffers(delivery: Delivery) -> str:
    program = delivery.program
    lines = [
        f"static {_c_type(t)} {role}_{i}[{_room(t)}]; /* {c_comment(t.name)} */"
        for role, tensors in (("zero", program.inputs), ("output", program.outputs))
        for i, t in enumerate(tensors)
    ]
    rows = [("const void *const zeros", "zero", len(program.inputs))]
    rows.append(("void *const outputs", "output", len(program.outputs)))
    if delivery.sample is not None:
        rows.append(("const void *const recorded", "recorded_input", len(program.inputs)))
    for declaration, name, count in rows:
        places = ", ".join(f"{name}_{i}" for i in range(count)) or "NULL"
        lines.append(f"static {declaration}[] = {{{places}}};")
    return "\n".join(lines)


def _reader_name(info: TensorInfo) -> str:
    return f"{dtype_of(info).name}_at"


def _reader(info: TensorInfo) -> str:
    """A function that gives one element as a double."""
    body = _READERS.get(
        dtype_of(info).name, f"  return (double)((const {_c_type(info)} *)data)[i];"
    )
    return f"static double {_reader_name(info)}(const void *data, size_t i) {{\n{body}\n}}"


def _check(outputs: Sequence[TensorInfo], sample: Sample) -> str:
    lines = []
    for i, (info, tolerance) in enumerate(zip(outputs, sample.tolerances, strict=True)):
        name, want = c_string(info.name), f"recorded_output_{i}"
        if tolerance:
            call = f"check_numbers({name}, {_reader_name(info)}, output_{i}, {want}, "
            call += f"{info.elements}, {tolerance:g})"
        else:
            call = f"check_bytes({name}, output_{i}, {want}, {tensor_bytes(info)})"
        lines.append(f"  failed |= {call};\n")
    parts = [_CHECK_BYTES] if 0.0 in sample.tolerances else []
    parts += [_CHECK_NUMBERS] if any(sample.tolerances) else []
    body = f"  int failed = 0;\n{''.join(lines)}  return failed;\n"
    return "".join([*parts, f"\nstatic int check(void) {{\n{body}}}\n"])


# -- recorded numbers --------------------------------------------------------------------------


def _data(delivery: Delivery, sample: Sample) -> str:
    program = delivery.program
    guard = f"DLCC_EXAMPLE_{delivery.macro}_H"
    parts = [
        f"/* Recorded for {EXAMPLE}: {c_comment(sample.source)}, and the reference's output. */",
        f"#ifndef {guard}\n#define {guard}\n\n#include <math.h>\n#include <stdint.h>\n",
    ]
    roles = (("input", program.inputs, sample.inputs), ("output", program.outputs, sample.outputs))
    for role, tensors, contents in roles:
        for i, (info, content) in enumerate(zip(tensors, contents, strict=True)):
            shape = ", ".join(map(str, info.shape))
            parts.append(
                f"/* {c_comment(info.name)}: {info.dtype}[{shape}] */\n"
                f"static const {_c_type(info)} recorded_{role}_{i}[{_room(info)}] = {{\n"
                f"{_numbers(info, content)}\n}};\n"
            )
    return "\n".join([*parts, "#endif\n"])


def _numbers(info: TensorInfo, content: bytes) -> str:
    """The elements as C constants, exactly; of types that C does not have, their bits."""
    array = np.frombuffer(content, dtype_of(info))
    if array.dtype.kind == "f" and array.itemsize >= 4:
        words = [_real(x) for x in array]
    elif array.dtype.kind in "iu":
        words = [_integer(int(x)) for x in array]
    else:
        words = [str(x) for x in np.frombuffer(content, f"<u{array.itemsize}")]
    words = words or ["0"]
    rows = (words[i : i + _PER_LINE] for i in range(0, len(words), _PER_LINE))
    return ",\n".join("  " + ", ".join(row) for row in rows)


def _real(number: np.floating[Any]) -> str:
    """The shortest decimal that is read as this very number."""
    suffix = "f" if number.dtype == np.float32 else ""
    if np.isnan(number):
        return "NAN"
    if np.isinf(number):
        return "INFINITY" if number > 0 else "-INFINITY"
    return f"{number!s}{suffix}"


def _integer(number: int) -> str:
    if -(2**31) < number < 2**31:
        return str(number)
    if number == -(2**63):
        return "INT64_MIN"
    return f"INT64_C({number})" if number < 2**63 else f"UINT64_C({number})"
