"""Prints how near each file's results are: ``python -m tests.real FOLDER_OF_WHEELS [NAME...]``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from dlcc.errors import DlccError
from tests.real.files import FILES, RealFile


def row(file: RealFile, path: Path, folder: Path) -> str:
    """A line of the Markdown table."""
    cells = [f"{file.package} {file.version}", Path(file.path).name, file.what]
    try:
        nodes = len(file.load(path).nodes)
        errors, _ = file.compare(path, folder / "fp32", 32)
        _, noise = file.compare(path, folder / "int8", 8)
        cells += [str(nodes), f"{max(errors):.1e}", ", ".join(f"{db:.0f}" for db in noise)]
    except DlccError as error:
        cells.append(" ".join(str(error).split()))
    return f"| {' | '.join(cells)} |"


def main(wheels: Path, names: list[str]) -> None:
    """Print the table of all files, or of those whose name has one of ``names`` in it."""
    print("| package | file | task | nodes | largest error | SQNR at 8 bits, dB |")
    print("|---|---|---|---|---|---|")
    for file in FILES:
        if names and not any(name in file.name for name in names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = file.find(wheels, Path(folder))
            found = row(file, path, Path(folder)) if path else f"| {file.name} | is not here |"
        print(found, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
