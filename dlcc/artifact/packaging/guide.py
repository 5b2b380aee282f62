"""``INTEGRATION.md``: one page that says how to build with this artifact, and what it takes."""

from __future__ import annotations

from importlib.resources import files

from dlcc.artifact.check import dtype_of, tensor_bytes
from dlcc.artifact.manifest import compiler_name
from dlcc.artifact.packaging.facts import EXAMPLE, EXAMPLE_DATA, KINDS, Delivery
from dlcc.artifact.toolchain import zig_target
from dlcc.program import TensorInfo

_ALL_CPUS = "as many as the process has CPUs"
_NEEDS = {
    "": "libc and nothing else",
    "cuda": "libc, and to run an NVIDIA GPU with a driver for CUDA 12.0 or newer; no CUDA toolkit",
}
_KINDS = {
    "so": "shared library",
    "a": "static library",
    "o": "the same as one object file",
    "c": "the network as C99",
}


def guide(delivery: Delivery) -> str:
    """The page, in Markdown."""
    program = delivery.program
    values = {
        "title": _cell(program.name),
        "compiler": compiler_name(),
        "triple": program.triple,
        "machine": "any machine with a C99 compiler"
        if delivery.kind == "c"
        else f"`{program.triple}`",
        "files": "\n".join(f"| `{name}` | {what} |" for name, what in _files(delivery)),
        "commands": _commands(delivery),
        "flags": delivery.link(delivery.kind, "DIR"),
        "compiler_command": delivery.compiler,
        "library_command": f"{delivery.compiler} -IDIR -c DIR/{delivery.symbol}.c"
        if delivery.kind == "c"
        else f"{delivery.compiler} main.o {delivery.link(delivery.kind, 'DIR')} -o main",
        "tensors": "\n".join(
            _tensor(role, i, t)
            for role, tensors in (("in", program.inputs), ("out", program.outputs))
            for i, t in enumerate(tensors)
        ),
        "codes": _codes(delivery),
        "profiles": _profiles(delivery),
        "memory": "\n".join(
            f"| {what} | {size} | {where} |" for what, size, where in _memory(delivery)
        ),
        "weights_argument": "NULL" if delivery.embed else f'"{delivery.symbol}.weights"',
        "threads": _threads(delivery),
        "cpu": _gpu(delivery) if program.device else _cpu(delivery),
        "needs": _NEEDS[program.device],
        "sample": _sample(delivery),
        "name": delivery.symbol,
        "NAME": delivery.macro,
    }
    folder = "bare/" if delivery.bare else ""
    text = files("dlcc.runtime").joinpath(f"c/{folder}integration.md.in").read_text("utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _cell(text: str) -> str:
    """``text`` within a Markdown table or heading."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return "".join(f"\\{c}" if c in "\\`*_|<>[]#" else c for c in plain)


def _files(delivery: Delivery) -> list[tuple[str, str]]:
    name = delivery.symbol
    rows = [(delivery.library(kind), _KINDS[kind]) for kind in KINDS if kind in delivery.emit]
    rows.append((f"{name}.h", "the interface, for C99 and C++98 upwards"))
    if delivery.kind == "c":
        rows.append((f"{name}_weights.h", "the weights, for that file only"))
    elif not delivery.embed:
        rows.append((f"{name}.weights", "the weights, needed at run time"))
    rows += [
        (f"{name}Config.cmake", "for CMake's `find_package`"),
        *([] if delivery.kind == "c" else [(f"{name}.pc", "for pkg-config")]),
        (EXAMPLE, "a program that runs the network and checks its output"),
    ]
    if delivery.sample is not None:
        rows.append((EXAMPLE_DATA, "the recorded input and output of that program"))
    return [*rows, ("manifest.json", "sizes, layers and SHA-256 of every file")]


def _commands(delivery: Delivery) -> str:
    """One for each form, and one with the compiler that came with dlcc."""
    lines = [delivery.build(kind) for kind in KINDS if kind in delivery.emit]
    if delivery.board_flags:
        return "\n".join(lines)
    if delivery.kind == "c":
        lines.append(delivery.build(delivery.kind, "python3 -m ziglang cc"))
        return "\n".join([*lines, "./example"])
    target = zig_target(delivery.program.triple)
    lines.append(delivery.build(delivery.kind, f"python3 -m ziglang cc -target {target}"))
    return "\n".join([*lines, "./example"])


def _shape(info: TensorInfo) -> str:
    return " x ".join(map(str, info.shape)) or "one element"


def _tensor(role: str, index: int, info: TensorInfo) -> str:
    shape = _shape(info)
    meaning = "" if info.scale is None else f"{info.scale!r} * (code - {info.zero_point})"
    dtype, size = dtype_of(info), tensor_bytes(info)
    return (
        f"| {role} {index} | {_cell(info.name)} | {dtype.name} | {shape} | {size} "
        f"| {dtype.itemsize} | {meaning} |"
    )


def _codes(delivery: Delivery) -> str:
    tensors = (*delivery.program.inputs, *delivery.program.outputs)
    if all(info.scale is None for info in tensors):
        return ""
    return "\nCodes stand for the real numbers in the last column.\n"


def _profiles(delivery: Delivery) -> str:
    """Shapes and memory of each shape profile; "" where there is one."""
    program, name = delivery.program, delivery.symbol
    if not program.more_shapes:
        return ""
    rows = []
    for number, profile in enumerate(program.profiles):
        sizes = (
            ", ".join(f"{_cell(t.name)} {_shape(t)}" for t in tensors)
            for tensors in (profile.inputs, profile.outputs)
        )
        rows.append(f"| {number} | {' | '.join(sizes)} | {profile.arena_bytes} |")
    return (
        "\n## Shapes\n\n"
        "The library holds the network for several shapes of its inputs, with one copy of the "
        "weights. The table above and the calls there are about number 0.\n\n"
        "| | Inputs | Outputs | Arena, bytes |\n|---:|---|---|---:|\n" + "\n".join(rows) + "\n\n"
        f"`{name}_find_shape_profile` gives the number for shapes of inputs, "
        f"`{name}_create_shape_profile` makes an instance for a number. "
        f"`{name}_info()->shape_profiles` has all of them with their inputs and outputs.\n"
    )


def _memory(delivery: Delivery) -> list[tuple[str, str, str]]:
    if delivery.bare:
        return _bare_memory(delivery)
    if delivery.program.device:
        return _device_memory(delivery)
    rows = [
        (
            "arena",
            f"{delivery.program.arena_bytes}",
            f"of each instance: allocated by `{delivery.symbol}_create`, or the caller's, given to "
            f"`{delivery.symbol}_create_in` (64-byte aligned)",
        )
    ]
    weights = (
        "in the library, read-only"
        if delivery.embed
        else "the file, mapped read-only and shared by all processes"
    )
    if delivery.unpacked_bytes:
        weights = "packed; read when an instance is made"
        rows.append(
            ("unpacked weights", f"{delivery.unpacked_bytes}", "of each instance, allocated")
        )
    rows.insert(1, ("weights", f"{delivery.weights_bytes}", weights))
    return [*rows, _stack(delivery)]


def _stack(delivery: Delivery) -> tuple[str, str, str]:
    if delivery.stack_bytes is None:
        return "stack", "not known", "of a thread in a run"
    others = "the driver, " if delivery.program.device else ""
    stack = (
        f"`{delivery.symbol}_run` takes at most so much of the calling thread's, as the code of "
        f"its functions says; what {others}libc's memcpy, locks and, where a run fails, vsnprintf "
        "take comes on top"
    )
    return "stack", f"{delivery.stack_bytes}", stack


def _device_memory(delivery: Delivery) -> list[tuple[str, str, str]]:
    program = delivery.program
    border = sum(tensor_bytes(t) for t in (*program.inputs, *program.outputs))
    return [
        (
            "arena",
            f"{program.arena_bytes}",
            f"of the GPU, of each instance: allocated by `{delivery.symbol}_create`, or the "
            f"caller's, given to `{delivery.symbol}_create_in` (256-byte aligned)",
        ),
        ("inputs and outputs", f"{border}", "of the GPU, of each instance, allocated"),
        ("weights", f"{len(program.weights)}", "of the GPU, shared by a program's instances"),
        _stack(delivery),
    ]


def _bare_memory(delivery: Delivery) -> list[tuple[str, str, str]]:
    name, stack = delivery.symbol, delivery.stack_bytes
    given = f"the caller's, a `{name}_arena_t`: {delivery.macro}_ARENA_BYTES with padding"
    rows = [("arena", f"{delivery.program.arena_bytes}", given)]
    rows.append(("weights", f"{delivery.weights_bytes}", "constants, in flash where that is"))
    if delivery.kind == "c":
        return [*rows, ("stack", "the compiler's", "`-fstack-usage` of GCC and clang tells")]
    return [*rows, ("stack", "not known" if stack is None else f"{stack}", f"of `{name}_run`")]


def _threads(delivery: Delivery) -> str:
    most = delivery.program.threads
    if most == 1:
        return "The network runs on the calling thread; no thread is started."
    chosen = "as many as there are performance cores" if delivery.macos else _ALL_CPUS
    return (
        f"At most {most} threads, the caller's included; `create` takes their number (0: "
        f"{chosen}), starts the others, with stacks of libc's default size, and "
        "`destroy` ends them. The output does not depend on it."
    )


def _gpu(delivery: Delivery) -> str:
    names = ", ".join(p.features[0] for p in delivery.program.variants)
    return (
        f"Instances run on a GPU, the first that `CUDA_VISIBLE_DEVICES` leaves or the one that "
        f"`{delivery.symbol}_create_on` names. The library holds kernels for {names}; a GPU takes "
        "those of its own generation, of no newer capability than its own. Where there is no such "
        f"GPU, or no driver, `create` returns `{delivery.macro}_NO_DEVICE` and the error text says "
        f"why. `{delivery.symbol}_run_device` takes tensors that are in the GPU's memory, and puts "
        "the work on a stream of the caller's without waiting for it."
    )


def _cpu(delivery: Delivery) -> str:
    program = delivery.program
    if delivery.kind == "c":
        return ""
    if delivery.bare:
        needs = ", ".join(program.features)
        return f"The code uses {needs}, and nothing checks that the core has it." if needs else ""
    if not program.features:
        return f"Any {delivery.architecture} CPU runs it."
    if program.better:
        variants = "; ".join(f"{p.variant} ({', '.join(p.features)})" for p in program.variants)
        return (
            "The library holds variants of its kernels, of which `create` takes the last that the "
            f"CPU runs: {variants} (names as in Linux's /proc/cpuinfo). On a CPU that runs none of "
            "them it returns "
            f"`{delivery.macro}_UNSUPPORTED_CPU`, and the error text names what is missing."
        )
    return (
        f"The kernels use {', '.join(program.features)} (names as in Linux's /proc/cpuinfo). On a "
        f"CPU without one of them `create` returns `{delivery.macro}_UNSUPPORTED_CPU`, and the "
        "error text names it; nothing else of the library uses them."
    )


def _sample(delivery: Delivery) -> str:
    if delivery.sample is None:
        return "No input was recorded, so that it checks only that the calls succeed."
    rules = []
    for info, tolerance in zip(delivery.program.outputs, delivery.sample.tolerances, strict=True):
        rule = f"within {tolerance:g} of its largest number" if tolerance else "byte for byte"
        rules.append(f"{_cell(info.name)} {rule}")
    return (
        f"The recorded input is {_cell(delivery.sample.source)}; the recorded output is what "
        f"dlcc's numpy reference computes from it, and is compared: {'; '.join(rules)}."
    )
