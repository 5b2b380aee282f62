"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Write files aside, and put each in its place once all of them are complete.

    A link is followed. A device or a pipe that is there is written to; a pipe needs a reader.

    Args:
        contents: by place.

    Raises:
        OSError: one cannot be written; no place has changed then, apart from a failure between the
            last two renames.
    """
    aside: dict[str, str] = {}
    try:
        for path, data in contents.items():
            target = os.path.realpath(path)
            if os.path.exists(target) and not os.path.isfile(target):
                _write_into(target, data)
                continue
            folder, name = os.path.split(target)
            number, aside[target] = tempfile.mkstemp(prefix=f".{name[:50]}.", dir=folder)
            with os.fdopen(number, "wb") as file:
                file.write(data)
            os.chmod(aside[target], _mode(target))
        for target, made in aside.items():
            os.replace(made, target)
    except BaseException:
        for made in aside.values():
            with suppress(FileNotFoundError):
                os.unlink(made)
        raise


def _write_into(target: str, data: bytes) -> None:
    number = os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(number, True)
    with os.fdopen(number, "wb", buffering=0) as file:
        ahead = memoryview(data)
        while ahead:
            ahead = ahead[file.write(ahead) :]


def _mode(target: str) -> int:
    """Permissions of the file that is replaced, or of a new one."""
    if os.path.exists(target):
        return os.stat(target).st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


__all__ = ["write_whole"]
