"""Archives of numpy arrays (.npz) that nobody vouches for: what they claim is checked first."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dlcc.bounds import check_bytes

UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What reading such a file raises where it is damaged."""

_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, Any]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_arrays(path: Path, *, bounded: bool = True) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz file by name.

    A compressed member may stand for a thousand times its size, and its header for any size at
    all, so both are held against each other, and against the memory that a compilation may take,
    before anything is read.

    Args:
        path: the file.
        bounded: whether the limit holds; samples that the user gives may be of any size.

    Raises:
        DlccError: LIMIT, the arrays are too large.
        Exception: one of :data:`UNREADABLE`.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
        raise OSError(f"{path} is no regular file")
    with path.open("rb") as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise ValueError("it holds a single array, not named ones")
    total = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            total += member.file_size
            if bounded:
                check_bytes(total, "the arrays", str(path))
            with archive.open(member) as file:
                _check_size(member, file)
    with np.load(path, allow_pickle=False) as loaded:
        return {key: loaded[key] for key in loaded.files}


def _check_size(member: zipfile.ZipInfo, file: IO[bytes]) -> None:
    """Hold the shape that an array's header claims against the bytes of the member."""
    header = _HEADERS.get(np.lib.format.read_magic(file))
    if header is None:
        return  # numpy refuses what it does not know, and reads no large header
    shape, _, dtype = header(file)
    need = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and need != member.file_size - file.tell():
        raise ValueError(
            f"{member.filename} claims {list(shape)[:8]} of {dtype}, {need} bytes, and holds "
            f"{member.file_size - file.tell()}"
        )


__all__ = ["UNREADABLE", "read_arrays"]
