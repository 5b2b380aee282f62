"""Writing a folder aside and putting it in place in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlcc.artifact import manifest as manifests
from dlcc.errors import DlccError, ExitCode

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _refuse(out_dir: Path, what: str, why: str, fix: str) -> DlccError:
    return DlccError(ExitCode.OUTPUT, what, where=str(out_dir), why=why, fix=fix)


def _own_files(folder: Path) -> set[str] | None:
    """The files an artifact in ``folder`` consists of; None if there is no artifact."""
    try:
        record = manifests.read_json(folder / manifests.NAME, manifests.MOST_BYTES)
        if record["format"] != manifests.FORMAT:
            return None
        return {manifests.NAME, *record["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_replaceable(target: Path, shown: Path) -> None:
    if target.is_dir():
        if any(target.iterdir()) and _own_files(target) is None:
            raise _refuse(
                shown,
                "the folder is not empty and not a dlcc artifact",
                "it would have to be replaced",
                "choose another folder with -o, or remove this one",
            )
    elif target.exists():
        raise _refuse(
            shown, "cannot make the folder", "a file has that name", "choose another name with -o"
        )


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step, where kernel and file system can."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    arguments = (_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    if libc.renameat2(*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))


def _swap_in(new: Path, target: Path) -> None:
    """Puts ``new`` in the place of ``target``; what was there is then at ``new``."""
    if not target.exists():
        new.rename(target)
        return
    if _exchange(new, target):
        return
    aside = new.with_name(new.name + ".old")
    target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        aside.rename(target)
        raise
    aside.rename(new)


def _keep_foreign(old: Path, target: Path) -> None:
    """Moves what the replaced artifact did not consist of into the new one."""
    own = _own_files(old) or set()
    for entry in old.iterdir():
        if entry.name not in own and not (target / entry.name).exists():
            entry.rename(target / entry.name)


def _check_foreign(new: Path, target: Path, shown: Path) -> None:
    """Refuses to replace a file that the artifact in ``target`` did not consist of."""
    if not target.is_dir():
        return
    own = _own_files(target) or set()
    clash = sorted(e.name for e in new.iterdir() if (target / e.name).exists())
    clash = [name for name in clash if name not in own]
    if clash:
        raise _refuse(
            shown,
            "the artifact would replace files of others",
            f"{', '.join(clash)} is in the folder, and not of the artifact there",
            "move it, or choose another folder with -o",
        )


def check_output(out_dir: str | Path) -> None:
    """Finds out early whether an artifact can be written to ``out_dir``; changes nothing.

    Raises:
        DlccError: OUTPUT, as from writing.
    """
    shown = Path(out_dir)
    target = Path(os.path.realpath(shown))
    try:
        _check_replaceable(target, shown)
        existing = target.parent
        while not existing.exists():
            existing = existing.parent
        if existing.is_dir() and not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
    except OSError as error:
        raise _failed(shown, error) from None


@contextmanager
def replace_folder(out_dir: Path) -> Iterator[Path]:
    """Gives an empty folder beside ``out_dir`` that takes its place when the block ends well.

    Raises:
        DlccError: OUTPUT if ``out_dir`` cannot be written or holds something other than an
            artifact. Nothing is changed then, nor if the block raises.
    """
    target = Path(os.path.realpath(out_dir))
    try:
        _check_replaceable(target, out_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", dir=target.parent))
    except OSError as error:
        raise _failed(out_dir, error) from None
    try:
        mask = os.umask(0)
        os.umask(mask)
        aside.chmod(0o777 & ~mask)  # mkdtemp's folders are closed to others
        yield aside
        _check_replaceable(target, out_dir)
        _check_foreign(aside, target, out_dir)
        _swap_in(aside, target)
        if aside.exists():
            _keep_foreign(aside, target)
    except OSError as error:
        raise _failed(out_dir, error) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _failed(out_dir: Path, error: OSError) -> DlccError:
    return _refuse(
        out_dir,
        "cannot write the artifact",
        error.strerror or str(error),
        "check the path, its permissions and the free space, or choose another folder with -o",
    )
