"""How often each instruction of a program runs, by QEMU's user-mode emulators and a plugin."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dlcc.artifact import Artifact
from dlcc.artifact.toolchain import Toolchain, is_bare
from dlcc.errors import DlccError, ExitCode

_PLUGIN = Path(__file__).with_name("executed.c")
_RUN = Path(__file__).with_name("run.c")
_RUN_BARE = Path(__file__).with_name("run_bare.c")
_EMULATORS = {
    "x86_64": "qemu-x86_64",
    "aarch64": "qemu-aarch64",
    "armv7": "qemu-arm",
    # its CPU "max" runs Thumb code with the DSP instructions; QEMU 7 starts no CPU of M-profile
    "thumbv7em": "qemu-arm",
}
_SECONDS = 1800.0
_CHANGED_INTERFACE = 9
"""The version of QEMU from which plugins need version 2 of the interface."""

Block = tuple[int, int]
"""Address of instructions that follow each other in memory, and how many they are."""


@dataclass(frozen=True)
class Executed:
    """What one inference executes.

    Attributes:
        program: the statically linked program that was run.
        runs: executions of each block.
        emulator: the emulator's name and version.
    """

    program: Path
    runs: Mapping[Block, int]
    emulator: str

    @property
    def instructions(self) -> int:
        """Instructions of one inference, all of them."""
        return sum(count * runs for (_, count), runs in self.runs.items())


def emulator_for(triple: str) -> str:
    """The emulator of a triple's architecture.

    Raises:
        DlccError: TARGET if there is none, or it is not installed.
    """
    parts = triple.split("-")
    name = _EMULATORS.get(parts[0])
    if name is None or not (set(parts) & {"linux", "none"}):
        raise DlccError(
            ExitCode.TARGET,
            f"instructions of {triple} cannot be counted",
            why=f"programs run in {', '.join(sorted({*_EMULATORS.values()}))}, which emulate Linux",
            fix="choose a target that runs Linux; for Apple's cores, --target arm:dotprod --core "
            "apple-m1",
        )
    if shutil.which(name) is None:
        raise DlccError(
            ExitCode.TARGET,
            f"there is no {name}",
            why="instructions are counted by running the library in QEMU's user-mode emulator",
            fix="install it: `apt install qemu-user` on Debian and Ubuntu",
        )
    return name


@cache
def version_of(emulator: str) -> tuple[int, str]:
    """Major version of an emulator, and all of it in words."""
    done = subprocess.run([emulator, "--version"], capture_output=True, text=True)
    match = re.search(r"version (\d+)[.\d]*", done.stdout)
    if match is None:
        raise DlccError(
            ExitCode.TARGET,
            f"{emulator} does not tell its version",
            why=(done.stdout + done.stderr).strip()[:200] or "it printed nothing",
            fix="install Debian's package qemu-user",
        )
    return int(match[1]), f"{emulator} {match[0].removeprefix('version ')}"


def make_plugin(emulator: str, folder: Path) -> Path:
    """The plugin of executed.c for this machine's ``emulator``, made in ``folder``."""
    interface = 1 if version_of(emulator)[0] < _CHANGED_INTERFACE else 2
    tools = Toolchain(f"{platform.machine()}-unknown-linux-gnu", folder)
    tools.link_module(str(_PLUGIN), "executed.so", {"API_VERSION": str(interface)})
    return folder / "executed.so"


def count_phases(
    emulator: str, command: Sequence[str | Path], folder: Path, options: Sequence[str] = ()
) -> list[Counter[Block]]:
    """Runs a program; executions of each block, in each of the phases that it marks.

    Args:
        emulator: name of the emulator.
        command: the program and its arguments.
        folder: for the plugin and its results.
        options: of the emulator, such as ``-cpu``.

    Raises:
        DlccError: TARGET if the program fails, as where it has instructions that the emulator
            does not know.
    """
    plugin, counts = make_plugin(emulator, folder), folder / "counts"
    line = [emulator, *options, "-plugin", f"{plugin},out={counts}", *map(str, command)]
    done = subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    if done.returncode != 0:
        raise DlccError(
            ExitCode.TARGET,
            f"the program does not run in {emulator}",
            why=done.stderr.strip()[-500:] or f"it ended with status {done.returncode}",
            fix="compile for a target whose instructions the emulator has",
        )
    return _read(counts)


def _read(counts: Path) -> list[Counter[Block]]:
    phases: list[Counter[Block]] = []
    with counts.open() as lines:
        for line in lines:
            if line.startswith("phase"):
                phases.append(Counter())
                continue
            address, instructions, runs = line.split()
            phases[-1][int(address, 16), int(instructions)] += int(runs)
    return phases


def one_run(phases: Sequence[Counter[Block]]) -> dict[Block, int]:
    """Executions of one run, from a phase of n runs and one of 2 n: what marks cost falls out.

    A block may have been split or merged between the phases: then one count is negative, and the
    sum over the blocks that an instruction is in is right all the same.
    """
    _, once, twice, *_ = phases
    found = {block: twice[block] - once[block] for block in twice.keys() | once.keys()}
    return {block: runs for block, runs in found.items() if runs}


def _tensors(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What run_bare.c is told of inputs and outputs."""
    sizes = [int(t["bytes"]) for role in ("inputs", "outputs") for t in manifest[role]]
    return {
        "INPUT_COUNT": str(len(manifest["inputs"])),
        "OUTPUT_COUNT": str(len(manifest["outputs"])),
        "TENSOR_SIZES": ",".join(map(str, sizes)),
        "TENSOR_WORDS": str(sum(size // 8 + 1 for size in sizes)),
    }


def executed(artifact: Artifact, folder: Path, variant: str, cpu: str = "max") -> Executed:
    """Runs an artifact's static library once, on zeros and one thread.

    Args:
        artifact: with a static library.
        folder: for the program and the counts; must stay as long as the result is used.
        variant: name of the variant of its kernels.
        cpu: the emulator's name of the CPU; "max" has all instructions that it knows.

    Raises:
        DlccError: USAGE if the artifact has no static library; TARGET if it cannot be run.
    """
    symbol, triple = str(artifact.manifest["symbol"]), str(artifact.manifest["triple"])
    emulator = emulator_for(triple)
    library = artifact.folder / f"lib{symbol}.a"
    if not library.is_file():
        raise DlccError(
            ExitCode.USAGE,
            "the artifact has no static library",
            where=str(artifact.folder),
            why="its kernels are told apart by the symbols of one",
            fix="compile with --emit so,a, or give the model",
        )
    tools = Toolchain(triple, folder)
    names = {"NET_HEADER": f'"{symbol}.h"', "NET(x)": f"{symbol}_##x"}
    place = artifact.folder.resolve()
    if is_bare(triple):
        names |= _tensors(artifact.manifest)
        tools.link_bare(str(_RUN_BARE), "run", names, place, str(place / library.name))
    else:
        names |= {"NET_VARIANT": f'"{variant}"'}
        tools.link_static(str(_RUN), "run", names, place, [str(place / library.name)])
    weights = place / f"{symbol}.weights"
    command = [folder / "run", *([weights] if weights.is_file() else [])]
    phases = count_phases(emulator, command, folder, ("-cpu", cpu))
    return Executed(folder / "run", one_run(phases), version_of(emulator)[1])
