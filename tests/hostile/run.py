"""``python -m tests.hostile.run BITS NAME...`` compiles files of the corpus, one after another.

Prints a JSON object at the end: ``files`` has by name the seconds that it took, and whether there
is an artifact; ``peak`` is the largest resident size in bytes of this process or a linker. Files
that are written outside of the case's folder and the temporary one end it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.hostile import probe
from tests.hostile.corpus import corpus

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir": (2,), "os.rename": (2, 3), "os.link": (2, 3), "os.symlink": (-1, 2),
    "os.remove": (1,), "os.rmdir": (1,),
}  # fmt: skip
"""Audited events by whose first arguments something is changed, and where each one's folder is."""

_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def watch_writing() -> None:
    """From now on Python's own writing outside of the temporary folder is an AssertionError."""
    allowed = (Path(tempfile.gettempdir()).resolve(), Path(os.devnull))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[2] & _WRITING:
            places = [_place(arguments[0])]
        else:
            folders = _CHANGES.get(event, ())
            pairs = zip(arguments, folders, strict=False)
            places = [_entry(path, arguments[at]) for path, at in pairs if at > 0]
        for place in filter(None, places):
            assert any(place.is_relative_to(a) for a in allowed), f"{event} {place}"

    sys.addaudithook(hook)


def _place(path: Any, folder: int = -1) -> Path | None:
    """Where ``path``, which may be relative to an open folder, lies; None for open files."""
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    base = f"/proc/self/fd/{folder}" if folder >= 0 else "."
    return Path(os.path.realpath(os.path.join(base, os.fsdecode(path))))


def _entry(path: Any, folder: int) -> Path | None:
    """The entry of a folder that ``path`` is, a link as it stands there."""
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    parent = _place(os.path.dirname(os.fsdecode(path)) or ".", folder)
    return parent and parent / os.path.basename(os.fsdecode(path))


def main(bits: int, names: list[str]) -> None:
    """Compile the cases called ``names``."""
    results: dict[str, tuple[float, bool]] = {}
    cases = {c.name: c for c in corpus()}
    watch_writing()
    for name in names:
        start = time.monotonic()
        try:
            with probe.place() as folder:
                taken = probe.compiled(cases[name], folder, bits)
        except BaseException:
            sys.stderr.write(f"\n-- {name}\n")
            raise
        results[name] = (time.monotonic() - start, taken)
    peak = max(resource.getrusage(who).ru_maxrss for who in _WHO) << 10
    sys.stdout.write(f"\n{json.dumps({'files': results, 'peak': peak})}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
