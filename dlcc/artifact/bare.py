"""The C of a network for machines without an operating system: public header and runtime.

Two forms of a network share it: the static library, whose kernels are object code, and the C
source, whose kernels are C. Both run on the caller's thread in the caller's arena; what they need
of a C library is ``memcpy``, ``memmove`` and ``memset`` at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

from dlcc.artifact.check import dtype_of, tensor_bytes
from dlcc.artifact.csource import jump_text, jumps_of, scale_lines, tensor_line
from dlcc.artifact.literals import c_comment, c_string
from dlcc.artifact.toolchain import is_bare
from dlcc.errors import DlccError, ExitCode
from dlcc.program import Arg, FusedStep, Program, Step

WORD = 8
"""Bytes: ``uint64_t``, the unit of the arena's declared type."""


def arena_bytes(program: Program) -> int:
    """Bytes of the arena that the header asks for: whole words, at least one."""
    return max(WORD, -(-program.arena_bytes // WORD) * WORD)


def check_bare(program: Program) -> None:
    """Refuses what a runtime of one thread and without a heap cannot run.

    Raises:
        DlccError: INTERNAL, for a program that was lowered for another runtime.
    """
    why = ""
    if program.threads != 1:
        why = f"it is planned for {program.threads} threads"
    elif any(isinstance(step, FusedStep) for step in program.steps):
        why = "it has fused steps"
    elif program.more_shapes:
        why = "it has several shape profiles, of which nobody would choose"
    elif program.better:
        why = "it has variants, of which nobody would choose"
    if why:
        raise DlccError(
            ExitCode.INTERNAL,
            "the program cannot run without an operating system",
            why=why,
            fix="this is a fault in the lowering, not in the model; please report it",
        )


def has_profiles(triple: str, emit: Sequence[str]) -> bool:
    """Whether a library can hold several shape profiles: if it has instances, made for one each.

    Args:
        triple: of the target.
        emit: kinds of library.

    Raises:
        DlccError: TARGET where the runtime has no port.
    """
    return "c" not in emit and not is_bare(triple)


def _template(name: str, values: Mapping[str, object]) -> str:
    text = files("dlcc.runtime").joinpath("c", "bare", name).read_text("utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text


def _size_lines(program: Program, symbol: str) -> str:
    roles = (("INPUT", program.inputs), ("OUTPUT", program.outputs))
    return "\n".join(
        f"#define {symbol.upper()}_{role}_{index}_BYTES {tensor_bytes(info)}"
        for role, tensors in roles
        for index, info in enumerate(tensors)
    )


_INSIDE = """ Where a macro gives a tensor a place in the arena (bytes from its
 * start), it may stand there too, to save memory: an input there is overwritten by the run, an
 * output holds until the next run or the next input."""


def _places(program: Program) -> list[int | None]:
    """Offset in the arena of each input and output, if it has a place there."""
    made: list[int | None] = []
    for places, tensors in (
        (program.input_places, program.inputs),
        (program.output_places, program.outputs),
    ):
        made += places or [None] * len(tensors)
    return made


def _place_lines(program: Program, symbol: str) -> str:
    names = [f"INPUT_{i}" for i in range(len(program.inputs))]
    names += [f"OUTPUT_{i}" for i in range(len(program.outputs))]
    return "\n".join(
        f"#define {symbol.upper()}_{name}_PLACE {place}"
        for name, place in zip(names, _places(program), strict=True)
        if place is not None
    )


def _next_lines(program: Program, symbol: str) -> str:
    """What the header says of the order of steps; "" where they follow each other."""
    if not jumps_of(program):
        return ""
    return f"""
/* Number of the step that follows `step`, once that has run: the network has loops. Instead of
 * 0, 1, ... the steps are 0, {symbol}_next(0, arena), and so on, as long as these are less than
 * {symbol.upper()}_STEPS. */
uint32_t {symbol}_next(uint32_t step, const void *arena);
"""


def _next_function(program: Program, symbol: str) -> list[str]:
    """The function that the header promises, line by line."""
    jumps = jumps_of(program)
    if not jumps:
        return []
    cases = []
    for number, jump in jumps.items():
        following = jump_text(jump, f"bytes + {jump.condition.offset}", number)
        cases += [f"    case {number}:", f"      return {following};"]
    return [
        f"uint32_t {symbol}_next(uint32_t step, const void *arena) {{",
        "  const unsigned char *const bytes = arena;",
        "  switch (step) {",
        *cases,
        "    default:",
        "      return step + 1;",
        "  }",
        "}",
        "",
    ]


def bare_header(program: Program, symbol: str, *, alignment: int) -> str:
    """The public header ``<symbol>.h``.

    Args:
        program: the network.
        symbol: its C name.
        alignment: bytes, of the arena.
    """
    tensors = [tensor_line("inputs", i, t) for i, t in enumerate(program.inputs)]
    tensors += [tensor_line("outputs", i, t) for i, t in enumerate(program.outputs)]
    return _template(
        "api.h.in",
        {
            "name": symbol,
            "NAME": symbol.upper(),
            "title": c_comment(program.name),
            "inputs_room": f"{symbol.upper()}_INPUTS",
            "outputs_room": f"{symbol.upper()}_OUTPUTS",
            "inputs": len(program.inputs),
            "outputs": len(program.outputs),
            "steps": len(program.steps),
            "arena_bytes": arena_bytes(program),
            "alignment": alignment,
            "sizes": _size_lines(program, symbol),
            "places": _place_lines(program, symbol),
            "scales": scale_lines(program, symbol),
            "next": _next_lines(program, symbol),
            "inside": _INSIDE if program.input_places or program.output_places else "",
            "tensors": "\n".join(tensors) or " *   no inputs, no outputs",
        },
    )


def bare_runtime(
    program: Program, symbol: str, call: Callable[[Step], str], comment: Callable[[int], str]
) -> str:
    """The public functions of ``<symbol>.c``, to stand behind its kernels.

    Args:
        program: the network, as :func:`check_bare` wants it.
        symbol: its C name.
        call: a step as a C statement. What it may use are ``arena``, a pointer to unsigned char,
            ``inputs`` and ``outputs``.
        comment: what is to be said of a step, by its number; as :func:`c_comment` makes it.
    """
    body = [
        f"static void {symbol}_call(uint32_t step, unsigned char *arena,",
        f"{' ' * (18 + len(symbol))}const void *const *inputs, void *const *outputs) {{",
        "  (void)arena, (void)inputs, (void)outputs;",
        "  switch (step) {",
    ]
    for index, step in enumerate(program.steps):
        assert isinstance(step, Step), "check_bare refuses fused steps"
        body.append(f"    case {index}: /* {comment(index)} */")
        body += [f"      {line}" for line in call(step).splitlines()]
        body.append("      break;")
    body += ["    default:", "      break;", "  }", "}", "", *_next_function(program, symbol)]
    tensors = [*program.inputs, *program.outputs]
    rows = []
    for tensor, place in zip(tensors, _places(program), strict=True):
        sizes = f"{tensor_bytes(tensor)}, {dtype_of(tensor).itemsize}"
        where = "SIZE_MAX" if place is None else place
        rows.append(f"  {{{sizes}, {where}}}, /* {c_comment(tensor.name)} */")
    layers = [f"    {c_string(step.layer)}," for step in program.steps]
    missing = ["inputs == NULL"] * bool(program.inputs) + ["outputs == NULL"] * bool(
        program.outputs
    )
    values = {
        "name": symbol,
        "NAME": symbol.upper(),
        "inputs": len(program.inputs),
        "count": len(tensors),
        # C has no empty arrays
        "tensors": "\n".join(rows or ["  {0, 1, SIZE_MAX},"]),
        "layers": "\n".join(layers or ["    NULL,"]),
        "missing": " || ".join(missing) or "0",
        "advance": f"step = {symbol}_next(step, arena)" if jumps_of(program) else "step++",
    }
    return "\n".join(body) + "\n" + _template("run.c.in", values)


def _address(arg: Arg, symbol: str) -> str:
    offset = f" + {arg.offset}" if arg.offset else ""
    if arg.kind == "arena":
        return f"arena{offset}"
    if arg.kind == "weights":
        return f"(void *)({symbol}_weights{offset})"
    if arg.kind == "input":
        return f"(unsigned char *)inputs[{arg.index}]{offset}"
    return f"(unsigned char *)outputs[{arg.index}]{offset}"


def bare_model_source(program: Program, symbol: str, kernels: Mapping[str, str]) -> str:
    """The C file of a static library: with the kernels' object code and the weights it is complete.

    Args:
        program: the network, as :func:`check_bare` wants it.
        symbol: its C name. The weights' content is to be ``<symbol>_weights``.
        kernels: kernel name in the program to symbol in the object.
    """
    parts = [f'#include "{symbol}.h"', "", f"extern const unsigned char {symbol}_weights[];"]
    arity = {call.function: len(call.args) for step in program.steps for call in step.calls}
    for function, count in arity.items():
        parts.append(f"extern int32_t {kernels[function]}({'void *, ' * count}int32_t, int32_t);")

    def call(step: Step) -> str:
        arguments = "".join(f"{_address(arg, symbol)}, " for arg in step.args)
        return f"(void){kernels[step.function]}({arguments}0, {step.work_items});"

    def comment(index: int) -> str:
        return c_comment(program.steps[index].layer)

    return "\n".join([*parts, "", bare_runtime(program, symbol, call, comment)])


def bare_weights_assembly(symbol: str, content_file: str, alignment: int) -> str:
    """Assembly that makes the file ``content_file`` the constant ``<symbol>_weights``."""
    name = f"{symbol}_weights"
    return (
        f'.section .rodata.{name},"a",%progbits\n.balign {alignment}\n.globl {name}\n'
        f'.hidden {name}\n.type {name}, %object\n{name}:\n.incbin "{content_file}"\n'
        f".size {name}, . - {name}\n"
    )
