"""Checks of a :class:`Program` before it is linked: a bad address must not reach the C compiler."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np

from dlcc.artifact.device import DeviceFault, check_device
from dlcc.artifact.toolchain import is_bare, is_macos
from dlcc.errors import DlccError, ExitCode
from dlcc.objects import ObjectError, read_object
from dlcc.program import ALIGNMENT, Arg, FusedStep, Program, Step, TensorInfo, Window
from dlcc.symbols import AEABI, MACOS

MOST_THREADS = 1024
_INT32_MAX = 2**31 - 1

# No function of libm: their last bits differ between versions, and results must not.
_LIBC = "memcpy memmove memset memcmp _GLOBAL_OFFSET_TABLE_"
# Conversions and wide divisions that the compiler's own library defines; it is linked statically.
_COMPILER_RT = """
__extendhfsf2 __truncsfhf2 __truncdfhf2 __truncsfbf2 __gnu_f2h_ieee __gnu_h2f_ieee __divti3
__udivti3 __modti3 __umodti3 __multi3
"""
_KNOWN = {*_LIBC.split(), *_COMPILER_RT.split(), *AEABI}


def _bug(what: str, why: str, where: str = "") -> DlccError:
    return DlccError(
        ExitCode.INTERNAL,
        what,
        where=where,
        why=why,
        fix="this is a fault in the lowering or a kernel, not in the model; please report it",
    )


def dtype_of(info: TensorInfo) -> np.dtype[Any]:
    """The numpy dtype of a tensor, the types of ml_dtypes (bfloat16, ...) included.

    Raises:
        DlccError: INTERNAL if numpy has no type of that name.
    """
    try:
        found: np.dtype[Any] = np.dtype(info.dtype)
    except TypeError:
        import ml_dtypes

        extended = getattr(ml_dtypes, info.dtype, None)
        if extended is None:
            raise _bug("unknown dtype", f"numpy has no type {info.dtype!r}", info.name) from None
        found = np.dtype(extended)
    return found


def tensor_bytes(info: TensorInfo) -> int:
    """Bytes of the densely stored tensor."""
    return info.elements * dtype_of(info).itemsize


@cache
def known_features(triple: str) -> frozenset[str]:
    """The CPU features that the runtime can check on ``triple``, as its C source lists them."""
    if is_bare(triple):
        return frozenset()  # nobody to ask
    source_name = "cpu_apple.h" if is_macos(triple) else f"cpu_{triple.split('-')[0]}.h"
    source = files("dlcc.runtime").joinpath("c", source_name).read_text("utf-8")
    return frozenset(re.findall(r'^    \{"(\w+)", (?:(?:0x)?\d+|"hw)', source, re.MULTILINE))


def check_program(program: Program) -> None:
    """Verifies that every address, symbol and name of ``program`` is one the runtime can serve.

    Raises:
        DlccError: INTERNAL, with the step or tensor and the broken bound.
    """
    for variant in program.schedules:
        _check_variant(variant)
    for profile in program.profiles:
        _check_together(profile)
    for other in program.more_shapes:
        _check_profile(program, other)


def _check_profile(program: Program, other: Program) -> None:
    """What a further shape profile has to share with the first one, and what it may not.

    Functions of one name are one function, as both have the same object code.
    """
    for first, twin in zip_longest(program.variants, other.variants):
        for field in ("name", "variant", "features", "object_code", "weights", "weight_entries",
                      "triple", "device", "threads", "alignment"):  # fmt: skip
            if getattr(first, field, None) != getattr(twin, field, None):
                raise _bug("a shape profile is of another network", f"its {field} differ")
    borders = [[_shapeless(t) for t in (*p.inputs, *p.outputs)] for p in (program, other)]
    if borders[0] != borders[1]:
        raise _bug("a shape profile is of another network", "more differs than shapes")
    shapes = [tuple(t.shape for t in p.inputs) for p in program.profiles]
    if len(set(shapes)) != len(shapes):
        raise _bug("two shape profiles are for the same inputs", f"shapes: {shapes}")


def _shapeless(info: TensorInfo) -> TensorInfo:
    """``info`` with as many extents, all of them 0."""
    return replace(info, shape=(0,) * len(info.shape))


def _check_together(program: Program) -> None:
    """What the variants of a program have to share, and what they may not."""
    names = [p.variant for p in program.variants]
    if len(set(names)) != len(names):
        raise _bug("two variants share a name", f"names: {names}")
    functions: set[str] = set()
    for variant in program.variants:
        for field in ("name", "inputs", "outputs", "arena_bytes", "weights", "weight_entries",
                      "triple", "threads", "alignment", "device"):  # fmt: skip
            if getattr(variant, field) != getattr(program, field):
                raise _bug(
                    "a variant is of another network", f"its {field} differ", variant.variant
                )
        own = {call.function for step in variant.steps for call in step.calls}
        if own & functions and not program.device:  # each cubin has names of its own
            shared = ", ".join(sorted(own & functions))
            raise _bug("two variants share a function", shared, variant.variant)
        functions |= own


def _check_variant(program: Program) -> None:
    if not 1 <= program.threads <= MOST_THREADS:
        raise _bug("bad thread count", f"threads={program.threads}, allowed 1 to {MOST_THREADS}")
    if program.arena_bytes < 0:
        raise _bug("bad arena size", f"arena_bytes={program.arena_bytes}")
    unknown = set(program.features) - known_features(program.triple)
    if unknown and not program.device:
        raise _bug("unknown CPU feature", f"the runtime cannot check {', '.join(sorted(unknown))}")
    for role, tensors in (("input", program.inputs), ("output", program.outputs)):
        names = [t.name for t in tensors]
        if len(set(names)) != len(names):
            raise _bug(f"two {role}s share a name", f"names: {names}")
        for tensor in tensors:
            if min(tensor.shape, default=0) < 0:
                raise _bug("negative dimension", f"shape {tensor.shape}", tensor.name)
            tensor_bytes(tensor)
    _check_texts(program)
    for step in program.steps:
        _check_step(program, step)
    _check_outputs_written(program)
    _check_entries(program)
    if program.device:
        try:
            check_device(program)
        except DeviceFault as fault:
            raise _bug(*fault.args) from fault
    else:
        _check_object(program)


def _check_texts(program: Program) -> None:
    texts = [program.name, program.variant, *(t.name for t in program.inputs + program.outputs)]
    for text in [*texts, *(s.layer for s in program.steps)]:
        if "\0" in text or text.encode("utf-8", "replace").decode("utf-8") != text:
            raise _bug("a name cannot be a C string", f"{text!r} has a zero or is not UTF-8")


def _check_step(program: Program, step: Step | FusedStep) -> None:
    if not 0 <= step.work_items <= _INT32_MAX or step.max_threads < 0:
        raise _bug(
            "bad work split",
            f"work_items={step.work_items}, max_threads={step.max_threads}",
            step.layer,
        )
    jump = step.jump if isinstance(step, Step) else None
    if jump is not None:
        reason = _arg_fault(program, jump.condition, 0)
        if jump.condition.kind != "arena":
            reason = "its condition is not in the arena"
        if reason or jump.to not in range(1, len(program.steps) + 1):
            raise _bug("bad jump", reason or f"to step {jump.to}", step.layer)
    windows = step.windows if isinstance(step, FusedStep) else ()
    for call in step.calls:
        for position, arg in enumerate(call.args):
            reason = _arg_fault(program, arg, len(windows))
            if reason:
                raise _bug(f"argument {position} of {call.function} is bad", reason, call.layer)
    for index, window in enumerate(windows):
        reason = _window_fault(program, window, step.work_items)
        if reason:
            raise _bug(f"window {index} is bad", reason, step.layer)
    if isinstance(step, FusedStep):
        _check_bands(step)


def _check_bands(step: FusedStep) -> None:
    for member in step.members:
        tables = member.first, member.until
        if any(len(table) != step.work_items for table in tables):
            raise _bug("bad bands", f"not {step.work_items} of them", member.layer)
        if min((0, *member.first)) < 0 or any(a > b for a, b in pairwise(member.until)):
            raise _bug("bad bands", "items out of order", member.layer)


def _window_fault(program: Program, window: Window, bands: int) -> str:
    arg = Arg("arena", window.offset, per_thread=window.per_thread)
    if len(window.start) != bands or len(window.kept) != bands:
        return f"not {bands} bands"
    for band, (start, kept) in enumerate(zip(window.start, window.kept, strict=True)):
        moved = start - window.start[band - 1] if band else 0
        if start % ALIGNMENT or moved < 0 or not 0 <= kept + moved <= window.per_thread:
            return f"start {start}, kept {kept} in band {band}"
    return _arg_fault(program, arg, 0)


def _arg_fault(program: Program, arg: Arg, windows: int) -> str:
    if arg.per_thread < 0 or (arg.per_thread > 0 and arg.kind != "arena"):
        return f"per_thread={arg.per_thread} in the memory {arg.kind!r}"
    if arg.kind in ("input", "output"):
        tensors = program.inputs if arg.kind == "input" else program.outputs
        if not 0 <= arg.index < len(tensors):
            return f"{arg.kind} {arg.index} of {len(tensors)}"
        size, alignment = tensor_bytes(tensors[arg.index]), 1
    elif arg.kind == "arena":
        size, alignment = program.arena_bytes, program.alignment
    elif arg.kind == "weights":
        size, alignment = len(program.weights), program.alignment
    elif arg.kind == "window":
        return "" if 0 <= arg.index < windows else f"window {arg.index} of {windows}"
    else:
        return f"unknown memory {arg.kind!r}"
    end = arg.offset + arg.per_thread * program.threads
    if arg.offset < 0 or end > size:
        return f"bytes {arg.offset} to {end} of {size} in the memory {arg.kind!r}"
    if arg.offset % alignment or arg.per_thread % alignment:
        return f"offset {arg.offset} or stride {arg.per_thread} is no multiple of {alignment}"
    return ""


def _check_outputs_written(program: Program) -> None:
    written = {
        arg.index
        for step in program.steps
        for call in step.calls
        for arg in call.args
        if arg.kind == "output"
    }
    for index, tensor in enumerate(program.outputs):
        if index not in written and tensor.elements > 0:
            raise _bug("no step writes an output", "it would hold arbitrary bytes", tensor.name)


def _check_entries(program: Program) -> None:
    end, last = 0, ""
    for entry in sorted(program.weight_entries, key=lambda e: e.offset):
        name = f"{entry.layer}.{entry.name}"
        if entry.size < 0 or entry.offset < end:
            raise _bug("weights overlap", f"{name} at {entry.offset}, {last} ends at {end}")
        end, last = entry.offset + entry.size, name
    if end > len(program.weights):
        raise _bug("weights are cut off", f"{last} ends at {end} of {len(program.weights)}")


def _check_object(program: Program) -> None:
    if not program.object_code and not program.steps:
        return
    try:
        file = read_object(program.object_code)
        symbols, used = file.symbols(), file.relocated()
    except ObjectError as error:
        raise _bug("the object code is unusable", str(error)) from error
    defined = {s.name for s in symbols if s.is_global and s.section}
    arity: dict[str, int] = {}
    for call in (call for step in program.steps for call in step.calls):
        if call.function not in defined:
            raise _bug("a kernel is missing", f"the object lacks {call.function!r}", call.layer)
        if arity.setdefault(call.function, len(call.args)) != len(call.args):
            raise _bug(
                "a kernel is called in two ways",
                f"{call.function}: {arity[call.function]} and {len(call.args)} arguments",
                call.layer,
            )
    known = _KNOWN | MACOS if is_macos(program.triple) else _KNOWN
    for index, symbol in enumerate(symbols):
        if index not in used:
            continue
        # TVM's runtime hooks are weak null pointers: linking succeeds, the first call crashes.
        if symbol.name.startswith(("TVM", "__TVM")):
            raise _bug("a kernel needs TVM's runtime", f"it refers to {symbol.name}")
        if symbol.is_global and not symbol.section and symbol.name not in known:
            raise _bug(
                "a kernel calls a function that the library will not have",
                f"it calls {symbol.name}",
            )
