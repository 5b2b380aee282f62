"""The generated C of a network: its public header and the model file the runtime is part of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Final

import numpy as np

from dlcc.artifact.check import dtype_of, tensor_bytes
from dlcc.artifact.device import cubin_table, device_tables, shared_bytes
from dlcc.artifact.literals import c_comment, c_string
from dlcc.artifact.manifest import compiler_name
from dlcc.artifact.toolchain import library_name
from dlcc.artifact.weights import padded, part_hash, parts_read
from dlcc.program import Arg, FusedStep, Jump, Member, Program, Step, TensorInfo

WEIGHTS_SECTION = ".dlcc_weights"
MACOS_WEIGHTS_SECTION = "__TEXT,__dlcc_weights"

_DEVICE_CODES: Final = {
    "cuda": """, /* a kernel or the driver failed */
  @NAME@_NO_DEVICE = 7 /* no NVIDIA driver, or no GPU that the kernels are for */"""
}


def tensor_line(role: str, index: int, info: TensorInfo) -> str:
    """The line of the header that describes one input or output."""
    shape = ", ".join(map(str, info.shape))
    return f" *   {role}[{index}]  {info.dtype}[{shape}]  {c_comment(info.name)}"


def scale_lines(program: Program, symbol: str) -> str:
    """Macros of what the codes of inputs and outputs stand for; "" where none are codes."""
    lines = []
    for role, tensors in (("INPUT", program.inputs), ("OUTPUT", program.outputs)):
        for index, info in enumerate(tensors):
            if info.scale is not None:
                stem = f"#define {symbol.upper()}_{role}_{index}_"
                lines.append(f"{stem}SCALE {_real(info.scale)}")
                lines.append(f"{stem}ZERO_POINT ({info.zero_point})")
    if not lines:
        return ""
    return "\n".join(["\n/* Codes: a real number is SCALE * (code - ZERO_POINT). */", *lines])


def _real(value: float) -> str:
    """A float32 as a literal of C and C++."""
    text = f"{np.float32(value):.9g}"
    return f"{text if set(text) & set('.en') else f'{text}.0'}f"


def most_steps(schedules: Sequence[Program]) -> int:
    """Steps of the schedule that has the most: as many times ``profile`` tells at most."""
    return max(len(schedule.steps) for schedule in schedules)


def _profile_lines(program: Program, symbol: str) -> str:
    """Comments and macros of the shape profiles behind the first one; "" where there are none."""
    lines = []
    for number, profile in enumerate(program.profiles[1:], 1):
        rows = [tensor_line("inputs", i, t) for i, t in enumerate(profile.inputs)]
        rows += [tensor_line("outputs", i, t) for i, t in enumerate(profile.outputs)]
        lines += [f"\n/* Shape profile {number}:", *rows, " */"]
        macro = f"{symbol.upper()}_SHAPE_PROFILE_{number}_ARENA_BYTES"
        lines.append(f"#define {macro} UINT64_C({profile.arena_bytes})")
    return "\n".join(lines)


def header_source(program: Program, symbol: str) -> str:
    """The public header ``<symbol>.h``."""
    tensors = [tensor_line("inputs", i, t) for i, t in enumerate(program.inputs)]
    tensors += [tensor_line("outputs", i, t) for i, t in enumerate(program.outputs)]
    values = {
        "name": symbol,
        "NAME": symbol.upper(),
        "title": c_comment(program.name),
        "library": library_name(symbol, "so", program.triple),
        "weights_file": f"{symbol}.weights",
        "inputs": len(program.inputs),
        "outputs": len(program.outputs),
        "inputs_room": f"{symbol.upper()}_INPUTS",
        "outputs_room": f"{symbol.upper()}_OUTPUTS",
        "steps": most_steps(program.schedules),
        "profiles": len(program.profiles),
        "threads": program.threads,
        "arena_bytes": program.arena_bytes,
        "scales": _profile_lines(program, symbol) + scale_lines(program, symbol),
    }
    text = _api_header(values, program.device)
    return text.replace("@tensors@", "\n".join(tensors) or " *   no inputs, no outputs")


def _api_header(values: Mapping[str, object], device: str) -> str:
    folder = files("dlcc.runtime").joinpath("c")
    text = folder.joinpath("api.h.in").read_text("utf-8")
    calls = folder.joinpath(device, "api.h.in").read_text("utf-8") if device else ""
    text = text.replace("@device_calls@", calls)
    text = text.replace("@device_codes@", _DEVICE_CODES.get(device, ""))
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text


def _address(arg: Arg) -> str:
    offset = f" + {arg.offset}" if arg.offset else ""
    if arg.kind == "window":
        return f"(void *)window[{arg.index}]"
    if arg.kind == "arena":
        scratch = f" + part * INT64_C({arg.per_thread})" if arg.per_thread else ""
        return f"frame->arena{offset}{scratch}"
    if arg.kind == "weights":
        return f"(void *)(frame->weights{offset})"
    pointer = f"frame->{arg.kind}s[{arg.index}]"
    return f"(char *){pointer}{offset}"


def _call(call: Step | Member, kernels: Mapping[str, str], begin: str, end: str) -> str:
    arguments = "".join(f"{_address(arg)}, " for arg in call.args)
    return f"{kernels[call.function]}({arguments}{begin}, {end})"


def jumps_of(program: Program) -> dict[int, Jump]:
    """The jumps after steps, by the steps' numbers."""
    steps = enumerate(program.steps)
    return {k: s.jump for k, s in steps if isinstance(s, Step) and s.jump is not None}


def jump_text(jump: Jump, address: str, step: int) -> str:
    """C for the number of the step that follows ``step``; ``address`` is the condition's."""
    ways = (jump.to, step + 1) if jump.when else (step + 1, jump.to)
    return f"*(const unsigned char *)({address}) ? {ways[0]} : {ways[1]}"


def _step_function(name: str, step: Step | FusedStep, kernels: Mapping[str, str]) -> str:
    head = (
        f"static int32_t {name}"
        "(const dlcc_frame *frame, int64_t part, int32_t begin, int32_t end) {\n"
        "  (void)frame;\n  (void)part;\n"
    )
    if isinstance(step, FusedStep):
        return head + _fused_body(step, kernels)
    return head + f"  return {_call(step, kernels, 'begin', 'end')};\n}}\n"


def _table(name: str, rows: Sequence[Sequence[int]]) -> str:
    body = ", ".join("{" + ", ".join(map(str, row)) + "}" for row in rows)
    return f"  static const int32_t {name}[{len(rows)}][{len(rows[0])}] = {{{body}}};\n"


def _fused_body(step: FusedStep, kernels: Mapping[str, str]) -> str:
    """Bands in turn, and in each of them the members' items that it needs.

    A window's address is that of the value's first byte, which lies before the window's memory when
    the window has moved on: hence integers.
    """
    code = [
        _table("first", [m.first for m in step.members]),
        _table("until", [m.until for m in step.members]),
        _table("start", [w.start for w in step.windows]),
        _table("kept", [w.kept for w in step.windows]),
        f"  uintptr_t window[{len(step.windows)}];\n  int32_t failure, from;\n",
        "  for (int32_t band = begin; band < end; band++) {\n",
    ]
    for i, w in enumerate(step.windows):
        base = _address(Arg("arena", w.offset, per_thread=w.per_thread))
        code.append(f"    window[{i}] = dlcc_window({base}, start[{i}], kept[{i}], band, begin);\n")
    for i, member in enumerate(step.members):
        code.append(
            f"    from = band == begin ? first[{i}][band] : until[{i}][band - 1];\n"
            f"    if (from < until[{i}][band]) {{\n"
            f"      failure = {_call(member, kernels, 'from', f'until[{i}][band]')};\n"
            "      if (failure != 0) return failure;\n    }\n"
        )
    return "".join([*code, "  }\n  return 0;\n}\n"])


def _tensor_table(role: str, profile: int, tensors: tuple[TensorInfo, ...]) -> list[str]:
    lines = []
    for index, info in enumerate(tensors):
        shape = ", ".join(map(str, info.shape)) or "0"
        lines.append(f"static const int64_t dlcc_{role}_shape_{profile}_{index}[] = {{{shape}}};")
    lines.append(f"static const dlcc_tensor dlcc_{role}s_{profile}[] = {{")
    for index, info in enumerate(tensors):
        lines.append(
            f"  {{{c_string(info.name)}, {c_string(info.dtype)}, {len(info.shape)}, "
            f"dlcc_{role}_shape_{profile}_{index}, UINT64_C({tensor_bytes(info)}), "
            f"{dtype_of(info).itemsize}}},"
        )
    # C has no empty arrays; the counts say how many rows there are.
    return [*lines, "  {0}", "};"]


def _profile_tables(program: Program) -> list[str]:
    """Inputs, outputs and variants of each shape profile, and the table of the profiles."""
    lines, rows = [], []
    first = 0
    for number, profile in enumerate(program.profiles):
        lines += _tensor_table("input", number, profile.inputs)
        lines += _tensor_table("output", number, profile.outputs)
        lines.append(f"static const dlcc_variant dlcc_variants_{number}[] = {{")
        for index, variant in enumerate(profile.variants, first):
            tables = f"dlcc_features_{index}, dlcc_layers_{index}"
            lines.append(f"  {{{c_string(variant.variant)}, {len(variant.steps)}, {tables}}},")
        lines.append("};")
        first += len(profile.variants)
        rows.append(
            f"  {{{most_steps(profile.variants)}, UINT64_C({profile.arena_bytes}), "
            f"dlcc_inputs_{number}, dlcc_outputs_{number}, dlcc_variants_{number}}},"
        )
    return [*lines, "static const dlcc_shapes dlcc_profiles[] = {", *rows, "};"]


def _info_table(
    program: Program, symbol: str, *, fingerprint: int, weights_bytes: int, embed: bool
) -> str:
    return f"""const dlcc_info dlcc_model_info = {{
  .abi = DLCC_CODE(ABI),
  .input_count = {len(program.inputs)},
  .output_count = {len(program.outputs)},
  .step_count = {most_steps(program.schedules)},
  .max_threads = {program.threads},
  .weights_embedded = {int(embed)},
  .arena_bytes = UINT64_C({program.arena_bytes}),
  .weights_bytes = UINT64_C({weights_bytes}),
  .fingerprint = UINT64_C({fingerprint:#018x}),
  .name = {c_string(program.name)},
  .compiler = {c_string(compiler_name())},
  .triple = {c_string(program.triple)},
  .weights_file = {c_string(symbol + ".weights")},
  .inputs = dlcc_inputs_0,
  .outputs = dlcc_outputs_0,
  .features = dlcc_features_0,
  .steps = dlcc_layers_0,
  .variant_count = {len(program.variants)},
  .variants = dlcc_variants_0,
  .shape_profile_count = {len(program.profiles)},
  .shape_profiles = dlcc_profiles,
}};
"""


def runtime_source(symbol: str, defines: Mapping[str, int], device: str = "") -> tuple[str, str]:
    """The header ``<symbol>.h`` of no network in particular, and the C file that is the runtime.

    Args:
        symbol: what the names that the linker sees begin with.
        defines: the macros that ``runtime.h`` asks for.
        device: :attr:`Program.device`.
    """
    lines = [*_names(symbol), *(f"#define {name} {value}" for name, value in defines.items())]
    folder = f"{device}/" if device else ""
    lines += [f'#include "{symbol}.h"', f'#include "{folder}runtime.h"', ""]
    names = {"name": symbol, "NAME": symbol.upper(), "scales": ""}
    return _api_header(names, device), "\n".join(lines)


def _names(symbol: str) -> list[str]:
    return [f"#define DLCC_NAME(x) {symbol}_##x", f"#define DLCC_CODE(x) {symbol.upper()}_##x"]


def unpack_source(symbol: str) -> str:
    """The Zig file that unpacks a packed weights file, with names of its own."""
    text = files("dlcc.runtime").joinpath("c", "unpack.zig").read_text("utf-8")
    return text.replace("@symbol@", symbol)


def step_functions(program: Program) -> list[list[str]]:
    """Names of the functions of the steps of each schedule."""
    return [
        [f"dlcc_step_{index}_{number}" for number in range(len(schedule.steps))]
        for index, schedule in enumerate(program.schedules)
    ]


def _schedule_tables(
    index: int, program: Program, names: Sequence[str], kernels: Mapping[str, str]
) -> list[str]:
    """The kernels and steps of the schedule with number ``index``.

    ``names`` are those of its steps' functions.
    """
    parts = []
    arity = {call.function: len(call.args) for step in program.steps for call in step.calls}
    for function, count in arity.items():
        parts.append(
            f"extern int32_t {kernels[function]}({'void *, ' * count}int32_t, int32_t) "
            '__attribute__((visibility("hidden")));'
        )
    parts += [
        _step_function(name, step, kernels) for name, step in zip(names, program.steps, strict=True)
    ]
    jumps = jumps_of(program)
    for number, jump in jumps.items():
        parts.append(
            f"static uint32_t dlcc_next_{index}_{number}(const dlcc_frame *frame) {{\n"
            f"  return {jump_text(jump, _address(jump.condition), number)};\n}}\n"
        )
    parts.append(f"static const dlcc_step dlcc_steps_{index}[] = {{")
    for number, (name, step) in enumerate(zip(names, program.steps, strict=True)):
        following = f"dlcc_next_{index}_{number}" if number in jumps else "0"
        parts.append(f"  {{{name}, {step.work_items}, {step.max_threads}, {following}}},")
    return [*parts, "  {0}", "};"]


def _name_tables(index: int, program: Program) -> list[str]:
    """The features and layers of the schedule with number ``index``."""
    features = "".join(f"{c_string(f)}, " for f in program.features)
    layers = "".join(f"{c_string(s.layer)}, " for s in program.steps)
    return [
        f"static const char *const dlcc_features_{index}[] = {{{features}NULL}};",
        f"static const char *const dlcc_layers_{index}[] = {{{layers}NULL}};",
    ]


def _reading_tables(program: Program) -> list[str]:
    """The parts of the weights that each schedule reads, and the hash of these."""
    lines, rows = [], []
    content = padded(program.weights)
    for index, schedule in enumerate(program.schedules):
        parts = parts_read(schedule)
        row = "".join(f"{{{start}, {end}}}, " for start, end in parts)
        lines.append(f"static const dlcc_part_of dlcc_parts_{index}[] = {{{row}{{0, 0}}}};")
        rows.append(f"  {{dlcc_parts_{index}, UINT64_C({part_hash(content, parts):#018x})}},")
    return [*lines, "const dlcc_reading dlcc_readings[] = {", *rows, "};"]


def model_source(
    program: Program,
    symbol: str,
    kernels: dict[str, str],
    *,
    fingerprint: int,
    weights_bytes: int,
    embed: bool,
    work_bytes: int | None = None,
) -> str:
    """The C file of what the runtime does not know of a network: its steps and tables.

    Args:
        program: a checked program.
        symbol: its C name.
        kernels: kernel name in the program to symbol in the object.
        fingerprint: 64 bits that bind library and weights file.
        weights_bytes: size of the weights file.
        embed: whether the weights are linked in.
        work_bytes: memory that unpacking takes where the weights file is packed; None: it is not.
    """
    schedules = program.schedules
    cubins = shared_bytes(program) if program.device else []
    parts = [
        *_names(symbol),
        f'#include "{symbol}.h"',
        f'#include "{program.device}/steps.h"' if program.device else '#include "steps.h"',
        "",
    ]
    if any(isinstance(step, FusedStep) for p in schedules for step in p.steps):
        parts.append('#include "bands.h"\n')
    for index, names in enumerate(step_functions(program)):
        schedule = schedules[index]
        if program.device:
            parts += device_tables(index, schedule, cubins[index % len(cubins)])
        else:
            parts += _schedule_tables(index, schedule, names, kernels)
        parts += _name_tables(index, schedule)
    parts += _profile_tables(program)
    if work_bytes is not None:
        parts.append(
            f"const dlcc_packed_sizes dlcc_packed = {{{len(program.weights)}, {work_bytes}}};"
        )
    elif len(schedules) > 1 and not program.device:
        parts += _reading_tables(program)
    if program.device:
        parts += cubin_table(program, symbol)
    else:
        tables = ", ".join(f"dlcc_steps_{index}" for index in range(len(schedules)))
        parts.append(f"const dlcc_step *const dlcc_schedules[] = {{{tables}}};")
    parts.append(
        _info_table(
            program, symbol, fingerprint=fingerprint, weights_bytes=weights_bytes, embed=embed
        )
    )
    return "\n".join(parts)


def weights_assembly(symbol: str, image_file: str, *, macos: bool = False) -> str:
    """Assembly that makes the file ``image_file`` the hidden symbol ``<symbol>_weights_image``."""
    name = f"{symbol}_weights_image"
    if macos:
        return (
            f".section {MACOS_WEIGHTS_SECTION},regular\n.p2align 6\n.globl _{name}\n"
            f'.private_extern _{name}\n_{name}:\n.incbin "{image_file}"\n'
            ".subsections_via_symbols\n"
        )
    return (
        f'.section {WEIGHTS_SECTION},"a",%progbits\n.balign 64\n.globl {name}\n.hidden {name}\n'
        f'{name}:\n.incbin "{image_file}"\n.section .note.GNU-stack,"",%progbits\n'
    )
