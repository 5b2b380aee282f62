"""Runs the code of a page of documentation, block by block, in the working directory.

    python run_page.py PAGE.md

Blocks marked ``python`` share one namespace; ``sh`` blocks run in bash and stop at the first error.
A comment on a line of its own right before a block changes what happens to it:

    <!-- file: name.c -->    write the block to that file instead of running it
    <!-- needs: module -->   leave it out where this Python module is not installed
    <!-- not run: reason --> leave it out; the reason is required

Blocks of any other language (output, IR, grammars) are for reading only.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from forked import commands

_DIRECTIVE = re.compile(r"<!-- (file|needs|not run): (.+?) -->")
_FENCE = re.compile(r"( *)```(\w*)\s*")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, where it starts, and the directive before it."""

    language: str
    text: str
    line: int
    directive: str = ""
    argument: str = ""


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    directive = argument = ""
    opened: tuple[str, str, int] | None = None
    body: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.fullmatch(line)
        if opened is not None:
            indent, language, start = opened
            if line.strip() == "```":
                code = "\n".join(row.removeprefix(indent) for row in body) + "\n"
                yield Block(language, code, start, directive, argument)
                opened, directive, argument = None, "", ""
            else:
                body.append(line)
        elif fence:
            opened, body = (fence[1], fence[2], number), []
        elif note := _DIRECTIVE.fullmatch(line.strip()):
            directive, argument = note.groups()
        elif line.strip():
            directive = argument = ""
    if opened is not None:
        raise ValueError(f"the block at line {opened[2]} has no end")


def run_page(page: Path) -> int:
    """Run a page; returns how many blocks ran or were written."""
    found = [b for b in blocks(page.read_text("utf-8")) if b.directive != "not run"]
    if not any(b.directive == "needs" and b.argument == "torch" for b in found):
        # TVM imports it where it is installed, which takes longer than the rest of most pages
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    path = [sysconfig.get_path("scripts"), os.environ["PATH"]]
    with ExitStack() as stack:
        if any(b.language == "sh" and "dlcc " in b.text for b in found):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            path.insert(0, str(stack.enter_context(commands(folder))))
        return _run(page, found, {**os.environ, "PATH": os.pathsep.join(path)})


def _run(page: Path, found: list[Block], environment: dict[str, str]) -> int:
    namespace: dict[str, object] = {"__name__": "__page__"}
    sys.path.insert(0, os.getcwd())
    count = 0
    for block in found:
        where = f"{page.name}:{block.line}"
        if block.directive == "needs" and importlib.util.find_spec(block.argument) is None:
            print(f"-- {where}: left out, {block.argument} is not installed", flush=True)
            continue
        if block.directive == "file":
            Path(block.argument).write_text(block.text, "utf-8")
        elif block.language == "python":
            # blank lines in front make line numbers in tracebacks those of the page
            code = compile("\n" * block.line + block.text, str(page), "exec")
            exec(code, namespace)
        elif block.language == "sh":
            script = f"set -euo pipefail\n{block.text}"
            done = subprocess.run(["bash", "-c", script], env=environment, check=False)
            if done.returncode:
                sys.exit(f"{where}: the commands ended with {done.returncode}")
        else:
            continue
        print(f"-- {where} {block.language}: ok", flush=True)
        count += 1
    return count


if __name__ == "__main__":
    run_page(Path(sys.argv[1]).resolve())
