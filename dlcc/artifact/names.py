"""The C name of a network: what its files, functions and macros are called."""

from __future__ import annotations

import re
import unicodedata

from dlcc.errors import DlccError, ExitCode

# <stem>_t, <stem>_create or <stem>_destroy are names of libc, or of a C or C++ compiler; F_OK,
# R_OK, W_OK and X_OK are macros of <unistd.h>; example.c is a file of every artifact.
_TAKEN = """
example f r w x
blkcnt blksize bool byte char16 char32 char8 clock clockid cnd cond daddr dev div double fd
float fpos fsblkcnt fsfilcnt gid gpointer id idtype imaxdiv ino intmax intptr key ldiv lldiv
locale mbstate max_align mode mq mqd mtx nfds nl_catd nlink nullptr off once pid posix pthread
pthread_attr pthread_cond pthread_key pthread_mutex ptrdiff regex regoff rlim sa_family sem
shm sig_atomic sigset size socklen ssize stack suseconds svc thrd time timer tss uid uintmax
uintptr useconds va wchar wctrans wctype wint xdr
"""
_SIZED_INTEGER = re.compile(r"u_?int(_least|_fast)?\d+|int(_least|_fast)?\d+|u_int\d*|float\d+")


def check_name(name: str) -> str:
    """A C name that a user has chosen, if it can be one.

    Raises:
        DlccError: USAGE, with one that can.
    """
    if name == c_identifier(name):
        return name
    raise DlccError(
        ExitCode.USAGE,
        f"{name!r} cannot be the C name of a network",
        where="--name",
        why="names are ASCII letters, digits and single underscores, at most 64, and no name of "
        "libc's",
        fix=f"choose for example --name {c_identifier(name)}",
    )


def c_identifier(name: str) -> str:
    """A C and C++ identifier stem for a network called ``name``: ASCII, never empty or taken.

    ``"ResNet-50 v2"`` gives ``ResNet_50_v2``, ``"2net"`` gives ``net_2net``. Accents go; other
    scripts become underscores. The result always serves as ``<stem>_create``, ``lib<stem>.so``, and
    upper-cased as a macro prefix.
    """
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^0-9A-Za-z]+", "_", ascii_name).strip("_")[:64].rstrip("_")
    if not stem:
        return "network"
    if stem[0].isdigit():
        return f"net_{stem}"
    if (
        stem.lower() in _TAKEN.split()
        or stem.lower() == "dlcc"
        or _SIZED_INTEGER.fullmatch(stem.lower())
    ):
        return f"net_{stem}"
    return stem
