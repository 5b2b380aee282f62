"""Options that several verbs share, and the reading of their text."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dlcc.errors import DlccError, ExitCode

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=SIZE",
        help="Size of a symbolic dimension (N=1) or shape of an input (x=1x3x224x224). Repeatable; "
        "compile takes several (N=1,8), for every combination.",
        show_default=False,
    ),
]
ConstantOption = Annotated[
    list[str] | None,
    typer.Option(
        "--constant",
        metavar="NAME=VALUE",
        help="What an input always is: a number, or numbers joined by commas. Repeatable.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int,
    typer.Option("--threads", min=0, help="Threads to run on; 0: all cores.", show_default=True),
]
VariantOption = Annotated[
    str | None,
    typer.Option(
        "--variant",
        metavar="LEVEL",
        help="Of a library with several variants of its kernels: this one.",
        show_default="the best that the CPU runs",
    ),
]

ShapeProfileOption = Annotated[
    int,
    typer.Option(
        "--shape-profile",
        metavar="NUMBER",
        min=0,
        help="Of an artifact with several shape profiles: this one, from 0.",
    ),
]

TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        help="Stop after this time; nothing is written then.",
        show_default="none",
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="BYTES|4G",
        help="Most memory that compiling may take.",
        show_default="4G for what the model asks for",
    ),
]

_MEMORY = re.compile(r"([0-9]+)([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SIZE = re.compile(r"[0-9]+")
_SHAPE = re.compile(r"[0-9]+(?:[x,][0-9]+)*[x,]?")

Shapes = dict[str, int | tuple[int, ...] | tuple[tuple[int, ...], ...]]
"""A size, a shape or several sizes, or several shapes, by name."""


def parse_shapes(texts: Sequence[str] | None) -> Shapes:
    """``["N=1", "x=1x3x8x8"]`` -> ``{"N": 1, "x": (1, 3, 8, 8)}``.

    A trailing ``x`` makes a shape of one axis: ``tokens=128x``. Commas between shapes make several
    of them, ``x=1x3x8x8,2x3x8x8``; where there is no ``x`` the name tells several sizes of a
    dimension, ``N=1,8``, from the shape of an input, ``x=1,3,8,8``.

    Raises:
        DlccError: USAGE, with the text that cannot be read.
    """
    shapes: Shapes = {}
    for text in texts or ():
        name, mark, size = text.rpartition("=")
        name, size = name.strip(), size.strip()
        if not mark or not name:
            raise _bad_shape(text, "it is not of the form NAME=SIZE")
        if name in shapes:
            raise _bad_shape(text, f"{name!r} is given twice")
        if not _SHAPE.fullmatch(size):
            raise _bad_shape(text, f"{size!r} is neither a size nor sizes joined by x")
        numbers = tuple(int(n) for n in re.split("[x,]", size) if n)
        if 0 in numbers:
            raise _bad_shape(text, "a size must be at least 1")
        several = [s for s in size.split(",") if s] if "x" in size else []
        if len(several) > 1:
            shapes[name] = tuple(tuple(int(n) for n in s.split("x") if n) for s in several)
        else:
            shapes[name] = numbers[0] if _SIZE.fullmatch(size) else numbers
    return shapes


def parse_memory(text: str | None) -> int | None:
    """``"4G"`` -> 4 GiB in bytes; K, M, G and T are powers of 1024.

    Raises:
        DlccError: USAGE, with the text that cannot be read.
    """
    if text is None:
        return None
    match = _MEMORY.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise DlccError(
            ExitCode.USAGE,
            "the amount of memory cannot be read",
            where=f"--max-memory {text}",
            why="it is no positive number of bytes",
            fix="write for example --max-memory 4G, or 4294967296",
        )
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


def parse_constants(
    texts: Sequence[str] | None,
) -> dict[str, int | float | list[int | float] | None]:
    """``["sr=16000", "scale=0.5,2"]`` -> ``{"sr": 16000, "scale": [0.5, 2]}``.

    ``state=none`` says that the optional or sequence ``state`` holds nothing.

    Raises:
        DlccError: USAGE, with the text that cannot be read.
    """
    constants: dict[str, int | float | list[int | float] | None] = {}
    for text in texts or ():
        name, mark, value = (part.strip() for part in text.rpartition("="))
        if not mark or not name or name in constants:
            why = f"{name!r} is given twice" if name in constants else "it is no NAME=VALUE"
            raise _bad_constant(text, why)
        if value.lower() == "none":
            constants[name] = None
            continue
        try:
            numbers = [_number(part.strip()) for part in value.split(",")]
        except ValueError:
            raise _bad_constant(text, f"{value!r} is neither a number nor several") from None
        constants[name] = numbers if "," in value else numbers[0]
    return constants


def _number(text: str) -> int | float:
    truth = {"true": 1, "false": 0}.get(text.lower())
    if truth is not None:
        return truth
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else float(text)


def _bad_constant(text: str, why: str) -> DlccError:
    return DlccError(
        ExitCode.USAGE,
        "the constant cannot be read",
        where=f"--constant {text}",
        why=why,
        fix="write for example --constant sr=16000 or --constant scale=0.5,2",
    )


def _bad_shape(text: str, why: str) -> DlccError:
    return DlccError(
        ExitCode.USAGE,
        "the shape cannot be read",
        where=f"--shape {text}",
        why=why,
        fix="write for example --shape N=1 or --shape input=1x3x224x224",
    )


def parse_list(text: str, option: str, known: Sequence[str]) -> tuple[str, ...]:
    """A comma-separated list of known names, without repetitions.

    Raises:
        DlccError: USAGE, for an empty list or an unknown name.
    """
    names = tuple(dict.fromkeys(t.strip() for t in text.split(",") if t.strip()))
    unknown = [n for n in names if n not in known]
    if unknown or not names:
        raise DlccError(
            ExitCode.USAGE,
            f"{option} {text!r} is not valid",
            why=f"unknown: {', '.join(unknown)}" if unknown else "it names nothing",
            fix=f"choose from {', '.join(known)}, joined by commas",
        )
    return names


def split_names(texts: Sequence[str] | None) -> tuple[str, ...]:
    """Names from a repeatable option that also takes comma-separated lists."""
    return tuple(n.strip() for text in texts or () for n in text.split(",") if n.strip())


def check_writable(path: Path, option: str = "-o") -> None:
    """Refuse an output place that cannot be written, before the long work and not after it.

    Raises:
        DlccError: OUTPUT, with what stands in the way.
    """
    parent = Path(os.path.abspath(path)).parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        why = f"{parent} is not a folder"
    elif not os.access(parent, os.W_OK | os.X_OK):
        why = f"no permission to write in {parent}"
    elif path.exists() and not os.access(path, os.W_OK):
        why = "no permission to replace it"
    else:
        return
    raise DlccError(
        ExitCode.OUTPUT,
        "the output cannot be written",
        where=str(path),
        why=why,
        fix=f"choose another place with {option}",
    )


def check_artifact_place(path: Path) -> None:
    """Refuse a place where no artifact folder can be made; a former artifact may be there.

    Raises:
        DlccError: OUTPUT, with what stands in the way.
    """
    check_writable(path)
    foreign = path.is_dir() and any(path.iterdir()) and not (path / "manifest.json").is_file()
    if foreign or (path.exists() and not path.is_dir()):
        raise DlccError(
            ExitCode.OUTPUT,
            "the artifact cannot be written",
            where=str(path),
            why="the folder holds other files, and is not a dlcc artifact that could be replaced"
            if foreign
            else "there is a file of that name",
            fix="choose another folder with -o",
        )


def check_dump_dir(path: Path | None) -> None:
    """Refuse a folder for the IR that cannot be made or written.

    Raises:
        DlccError: OUTPUT, with what stands in the way.
    """
    if path is None:
        return
    check_writable(path, "--dump-dir")
    if path.exists() and not path.is_dir():
        raise DlccError(
            ExitCode.OUTPUT,
            "the IR cannot be written",
            where=str(path),
            why="there is a file of that name",
            fix="choose another folder with --dump-dir",
        )


def check_writable_file(path: Path, option: str = "-o") -> None:
    """As :func:`check_writable`, for a file: its folder must exist.

    Raises:
        DlccError: OUTPUT, with what stands in the way.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise DlccError(
            ExitCode.OUTPUT,
            "the output cannot be written",
            where=str(path),
            why="it is a folder" if path.is_dir() else f"there is no folder {path.parent}",
            fix=f"choose another place with {option}",
        )
    check_writable(path, option)
