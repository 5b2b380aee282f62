"""A ``dlcc`` for pages: each command runs in a fork of one process that has imported everything.

A page has up to twenty commands, and most of them take less time than their imports. No code of
the page runs in that process, so a command knows as little of it as a program would.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLIENT = """#!{python} -IS
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
told = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(connection, [b"."], [0, 1, 2])
connection.sendall(told)
connection.shutdown(socket.SHUT_WR)
code = connection.recv(1)
sys.exit(code[0] if code else "dlcc was killed")
"""


@contextmanager
def commands(folder: Path) -> Iterator[Path]:
    """Provides ``dlcc`` in the folder that it gives, one to put in front of ``PATH``."""
    place = folder / "bin"
    place.mkdir()
    address = str(folder / "socket")
    client = place / "dlcc"
    client.write_text(_CLIENT.format(python=sys.executable, address=address), "utf-8")
    client.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        number = listener.fileno()
        server = subprocess.Popen(
            [sys.executable, __file__, str(number)], stdin=subprocess.PIPE, pass_fds=[number]
        )
    with server:  # ends when its input does, in whatever way this process ends
        yield place


def _serve(listener: socket.socket) -> None:
    """Runs commands until the standard input ends."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # as dlcc.cli.main does
    import dlcc.cli.app
    import dlcc.driver
    import dlcc.tir.build  # noqa: F401

    started = []
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        started.append(os.fork())
        if not started[-1]:
            listener.close()
            sys.exit(_run(connection))
        connection.close()
    for child in started:
        os.waitpid(child, 0)


def _run(connection: socket.socket) -> int:
    """One command as a program of its own would run it."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    told = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    sys.argv, folder, environment = json.loads(told)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
        for number in range(3)
    )
    from dlcc.cli import main

    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(bytes([code]))
    return code


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
