"""What is different about programs for a GPU: checks, tables, and the cubins in the library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from dlcc.artifact.literals import c_string
from dlcc.cuda.architecture import MOST_BLOCK, MOST_GRID, Architecture
from dlcc.cuda.cubin import Cubin, Kernel, read_cubin
from dlcc.objects import ObjectError
from dlcc.program import FusedStep, Program, Step

ALIGNMENT: Final = 256
"""Bytes: alignment of what the driver allocates, the arena and the weights among it."""

MOST_ARGUMENTS: Final = 64
"""Of a step: DLCC_MOST_ARGUMENTS of runtime/c/cuda/steps.h."""

CUBIN_SECTION: Final = ".dlcc_cubin"
_POINTER: Final = 8


class DeviceFault(Exception):
    """A program that no GPU can run: what is wrong, why, and in which layer."""

    def __init__(self, what: str, why: str, where: str = "") -> None:
        super().__init__(what, why, where)


def launches(program: Program) -> list[Step]:
    """The steps of a program for a GPU."""
    return [step for step in program.steps if isinstance(step, Step)]


def check_device(program: Program) -> None:
    """Verifies what the driver would refuse, or worse, accept.

    Raises:
        DeviceFault: with the step and the broken bound.
    """
    names = program.features
    architecture = Architecture.named(names[0]) if len(names) == 1 else None
    if architecture is None:
        raise DeviceFault("no architecture", f"features are {', '.join(names) or 'none'}")
    if program.threads != 1:
        raise DeviceFault("a GPU program with threads", f"threads={program.threads}")
    if ALIGNMENT % program.alignment:
        raise DeviceFault("bad alignment", f"{program.alignment}, memory is aligned to {ALIGNMENT}")
    for step in program.steps:
        if isinstance(step, FusedStep) or step.launch is None:
            raise DeviceFault("a step is no launch", "a GPU runs kernels only", step.layer)
    if not program.steps:
        return
    try:
        cubin = read_cubin(program.object_code)
    except ObjectError as error:
        raise DeviceFault("the cubin is unusable", str(error)) from error
    if cubin.architecture not in (architecture, architecture.code):
        raise DeviceFault("another architecture", f"{cubin.architecture}, not {architecture}")
    for number, step in enumerate(launches(program)):
        if not all(0 <= other < number for other in step.after):
            raise DeviceFault("a step comes after a later one", f"{step.after}", step.layer)
        reason = _launch_fault(step, cubin)
        if reason:
            raise DeviceFault(f"the kernel {step.function} cannot be run", reason, step.layer)


def _launch_fault(step: Step, cubin: Cubin) -> str:
    kernel, launch = cubin.kernels.get(step.function), step.launch
    if kernel is None or launch is None:
        return "the cubin lacks it"
    if kernel.parameters != (_POINTER,) * len(step.args):
        return f"{len(step.args)} addresses for parameters of {kernel.parameters} bytes"
    if len(step.args) > MOST_ARGUMENTS:
        return f"{len(step.args)} arguments, {MOST_ARGUMENTS} are possible"
    for name, sizes, most in (
        ("grid", launch.grid, MOST_GRID),
        ("block", launch.block, MOST_BLOCK),
    ):
        if any(not 1 <= size <= bound for size, bound in zip(sizes, most, strict=True)):
            return f"its {name} is {sizes}, at most {most} is possible"
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    possible = Architecture.threads_with(kernel.registers)
    possible = min(possible, kernel.max_threads or possible)
    if threads > possible:
        return f"{threads} threads in a block, with {kernel.registers} registers {possible} fit"
    shared = kernel.shared_bytes + launch.shared_bytes
    if launch.shared_bytes < 0 or shared > cubin.architecture.shared_bytes:
        bound = cubin.architecture.shared_bytes
        return f"{shared} bytes of shared memory, {cubin.architecture} has {bound}"
    return ""


def device_tables(index: int, program: Program, kernels: Iterable[str]) -> list[str]:
    """The steps of the schedule with number ``index``, as C; ``kernels`` are its cubin's."""
    steps = launches(program)
    lines = []
    for number, step in enumerate(steps):
        rows = ", ".join(
            f"{{DLCC_{arg.kind.upper()}, {arg.index}, UINT64_C({arg.offset})}}" for arg in step.args
        )
        name = f"dlcc_arguments_{index}_{number}"
        lines.append(f"static const dlcc_place {name}[] = {{{rows or '{0}'}}};")
        if step.after:
            before = ", ".join(map(str, step.after))
            lines.append(f"static const uint32_t dlcc_after_{index}_{number}[] = {{{before}}};")
    lines.append(f"static const dlcc_step dlcc_steps_{index}[] = {{")
    places = {function: place for place, function in enumerate(kernels)}
    for number, step in enumerate(steps):
        assert step.launch is not None
        grid, block = (", ".join(map(str, v)) for v in (step.launch.grid, step.launch.block))
        lines.append(
            f"  {{{places[step.function]}, {{{grid}}}, {{{block}}}, {step.launch.shared_bytes}, "
            f"{len(step.args)}, dlcc_arguments_{index}_{number}, "
            f"{len(step.after)}, {f'dlcc_after_{index}_{number}' if step.after else 'NULL'}}},"
        )
    return [*lines, "  {0}", "};"]


def shared_bytes(program: Program) -> list[dict[str, int]]:
    """The kernels of each variant, and the shared memory that their launches ask for at most."""
    found: list[dict[str, int]] = [{} for _ in program.variants]
    for index, schedule in enumerate(program.schedules):
        kernels = found[index % len(found)]
        for step in launches(schedule):
            asked = step.launch.shared_bytes if step.launch else 0
            kernels[step.function] = max(kernels.get(step.function, 0), asked)
    return found


def cubin_table(program: Program, symbol: str) -> list[str]:
    """What the runtime finds cubins, kernels and schedules by, as C."""
    lines, rows = [], []
    for index, kernels in enumerate(shared_bytes(program)):
        image = cubin_name(symbol, index) if kernels else "NULL"
        if kernels:
            lines.append(f"extern DLCC_HIDDEN const char {image}[];")
        lines.append(f"static const dlcc_kernel dlcc_kernels_{index}[] = {{")
        lines += [f"  {{{c_string(name)}, {asked}}}," for name, asked in kernels.items()]
        lines += ["  {0}", "};"]
        rows.append(f"  {{{image}, {len(kernels)}, dlcc_kernels_{index}}},")
    schedules = ", ".join(f"dlcc_steps_{index}" for index in range(len(program.schedules)))
    lines += ["const dlcc_cubin dlcc_cubins[] = {", *rows, "};"]
    return [*lines, f"const dlcc_step *const dlcc_schedules[] = {{{schedules}}};"]


def cubin_name(symbol: str, index: int) -> str:
    """The symbol of a variant's cubin in the library."""
    return f"{symbol}_cubin_{index}"


def cubin_assembly(symbol: str, files: Sequence[str]) -> str:
    """Assembly that makes the files the hidden symbols of :func:`cubin_name`."""
    lines = [f'.section {CUBIN_SECTION},"a",%progbits']
    for index, file in enumerate(files):
        name = cubin_name(symbol, index)
        lines += [".balign 64", f".globl {name}", f".hidden {name}", f"{name}:"]
        lines.append(f'.incbin "{file}"')
    return "\n".join([*lines, '.section .note.GNU-stack,"",%progbits', ""])


def kernel_facts(program: Program) -> dict[str, Kernel]:
    """The kernels of a checked program by name, as its cubin tells of them."""
    return read_cubin(program.object_code).kernels if program.steps else {}


def launch_record(step: Step, kernels: dict[str, Kernel]) -> dict[str, Any]:
    """What the manifest tells of a step on a GPU."""
    assert step.launch is not None
    kernel = kernels[step.function]
    return {
        "grid": list(step.launch.grid),
        "block": list(step.launch.block),
        "shared_bytes": step.launch.shared_bytes + kernel.shared_bytes,
        "registers": kernel.registers,
        "local_bytes": kernel.local_bytes,
        "after": list(step.after),
    }
