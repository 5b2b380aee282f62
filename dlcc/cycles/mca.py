"""Cycles of straight code on a core, by LLVM's scheduling models (llvm-mca)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from dlcc.cycles.code import Instruction
from dlcc.errors import DlccError, ExitCode

OLDEST, NEWEST = 14, 40
"""Versions of LLVM that are looked for under names like llvm-mca-19."""
_SIMULATED = 3000
"""Instructions of which a path is repeated to make at least this many, or 100 times."""
_REPEATS = (100, 20, 4)
_CALL = re.compile(r"(bl|blr|blx|call\w*|ret\w*|bx|syscall|svc)")
_IT = re.compile(r"i(t[te]{0,3})")
_CONDITION = re.compile(r"^(\w+?)(?:eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)(?=[.\s]|$)")
_UNSUPPORTED = re.compile(r"<stdin>:(\d+):\d+: (?:error|warning)")
_MOST_REFUSED = 200


@dataclass(frozen=True)
class Tools:
    """LLVM's programs of one version."""

    mca: str
    objdump: str
    version: str


@cache
def find_tools() -> Tools:
    """The newest installed LLVM with llvm-mca: newer ones know more cores.

    Raises:
        DlccError: TARGET if there is none.
    """
    for suffix in (*(f"-{n}" for n in range(NEWEST, OLDEST - 1, -1)), ""):
        mca, objdump = f"llvm-mca{suffix}", f"llvm-objdump{suffix}"
        if shutil.which(mca) is None or shutil.which(objdump) is None:
            continue
        told = subprocess.run([mca, "--version"], capture_output=True, text=True).stdout
        match = re.search(r"LLVM version (\S+)", told)
        if match is not None:
            return Tools(mca, objdump, match[1])
    raise DlccError(
        ExitCode.TARGET,
        "there is no llvm-mca",
        why="cycles are predicted by LLVM's scheduling models, with llvm-mca and llvm-objdump",
        fix="install LLVM's tools: `apt install llvm-19` (or llvm) on Debian and Ubuntu",
    )


@cache
def known_cores(mca: str, triple: str) -> frozenset[str]:
    """Names of the cores that an llvm-mca has models for."""
    done = subprocess.run(
        [mca, f"-mtriple={triple}", "-mcpu=help"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    listed = (done.stdout + done.stderr).partition("Available features")[0]
    return frozenset(re.findall(r"^\s+(\S+)\s+- Select the", listed, re.MULTILINE))


@dataclass(frozen=True)
class Costs:
    """What paths cost.

    Attributes:
        cycles: of one pass through each path, in the order given.
        model: prefix of the model's execution units: tells cores apart that share one.
        unknown: texts of instructions that the model has nothing on; they were left out.
    """

    cycles: tuple[float, ...]
    model: str
    unknown: tuple[str, ...]


class Machine:
    """The scheduling model of a core.

    Args:
        tools: LLVM's.
        triple: LLVM's triple.
        core: LLVM's name of the core.
        mattr: features on top; those that are taken away stay, as assembly may use what the
            compiler does not.

    Raises:
        DlccError: TARGET if this LLVM does not know the core.
    """

    def __init__(self, tools: Tools, triple: str, core: str, mattr: Sequence[str]) -> None:
        if core not in known_cores(tools.mca, triple):
            raise DlccError(
                ExitCode.TARGET,
                f"LLVM {tools.version} has no scheduling model of {core}",
                where=tools.mca,
                fix="install a newer one (`apt install llvm-19`), or name a core that it knows: "
                f"`{tools.mca} -mtriple={triple} -mcpu=help`",
            )
        self.core, self._tools = core, tools
        self._command = [tools.mca, f"-mtriple={triple}", f"-mcpu={core}", "--json"]
        self._command += ["--all-views=false", "--summary-view"]
        added = [feature for feature in mattr if feature.startswith("+")]
        if added:
            self._command.append(f"-mattr={','.join(added)}")

    def costs(self, paths: Sequence[Sequence[Instruction]]) -> Costs:
        """Cycles of one pass through the instructions of each path, run again and again.

        All data is taken to be in the first-level cache, and all branches to be foreseen. Calls
        and returns count as instructions that do nothing.

        Raises:
            DlccError: TARGET if llvm-mca cannot read the code.
        """
        groups: dict[int, list[int]] = {}
        for index, path in enumerate(paths):
            fitting = (n for n in _REPEATS if n * len(path) <= _SIMULATED)
            groups.setdefault(next(fitting, _REPEATS[-1]), []).append(index)
        cycles, model, unknown = [0.0] * len(paths), "", dict[str, None]()
        for repeats, members in groups.items():
            found, model, refused = self._simulate([paths[i] for i in members], repeats)
            unknown |= dict.fromkeys(refused)
            for index, value in zip(members, found, strict=True):
                cycles[index] = value
        return Costs(tuple(cycles), model, tuple(unknown))

    def _simulate(
        self, paths: Sequence[Sequence[Instruction]], repeats: int
    ) -> tuple[list[float], str, list[str]]:
        lines: list[str] = []
        for index, path in enumerate(paths):
            lines.append(f"# LLVM-MCA-BEGIN {index}")
            lines += _lines(path)
            lines.append("# LLVM-MCA-END")
        refused: list[str] = []
        while True:
            done = subprocess.run(
                [*self._command, f"-iterations={repeats}", "-"],
                input="\n".join(lines) + "\n",
                capture_output=True,
                text=True,
                errors="replace",
            )
            if done.returncode == 0:
                break
            bad = {int(n) - 1 for n in _UNSUPPORTED.findall(done.stderr)}
            bad = {n for n in bad if not lines[n].startswith(("#", "nop"))}
            if not bad or len(refused) > _MOST_REFUSED:
                raise DlccError(
                    ExitCode.TARGET,
                    f"llvm-mca cannot read the code for {self.core}",
                    where=f"{self._tools.mca} {self._tools.version}",
                    why=done.stderr.strip()[-500:],
                    fix="install a newer LLVM: `apt install llvm-19`",
                )
            refused += [lines[n] for n in sorted(bad)]
            for n in bad:
                lines[n] = "nop"
        told = json.loads(done.stdout)
        found = {int(r["Name"]): r["SummaryView"] for r in told["CodeRegions"]}
        cycles = [found[i]["TotalCycles"] / repeats for i in range(len(paths))]
        return cycles, _model(told["TargetInfo"]["Resources"]), refused


def _lines(path: Sequence[Instruction]) -> Iterator[str]:
    """Instructions for llvm-mca: calls and returns do nothing, and conditions of Thumb are met.

    Some models have nothing on ``it``; instructions behind it lose their conditions with it.
    """
    conditional = 0
    for instruction in path:
        block = _IT.fullmatch(instruction.mnemonic)
        if block is not None:
            conditional = len(block[1])
            yield "nop"
            continue
        text = instruction.text
        if conditional:
            conditional -= 1
            text = _CONDITION.sub(r"\1", text, count=1)
        yield "nop" if _CALL.fullmatch(text.split(None, 1)[0]) else text


def _model(units: Iterable[str]) -> str:
    """What the names of a model's units begin with: A57UnitB -> A57, N1UnitV -> N1."""
    names = [re.split(r"Unit|Port|\.|_", unit)[0] for unit in units]
    return max(set(names), key=lambda name: (names.count(name), name)) if names else ""
