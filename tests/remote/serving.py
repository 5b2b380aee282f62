"""A running dlcc-server, and messages written by hand."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
import subprocess
from pathlib import Path

from dlcc.program import Arg, Program, Step, TensorInfo
from dlcc.remote import Board
from dlcc.remote.protocol import VERSION, Ask
from tests.runtime.programs import TRIPLE

TOKEN = "not a stranger"
HEADER = struct.Struct("<IIQ")


class Server:
    """A server on a free port of this machine, as a context manager.

    ``command`` starts the program; what it stores lies below ``folder``.
    """

    def __init__(self, command: list[str], folder: Path, *options: str) -> None:
        self.folder = folder / "stored"
        self.folder.mkdir()
        self._log = folder / "server.log"
        self._command = [*command, "--listen", "127.0.0.1:0", "--folder", str(self.folder)]
        self._command += options

    def __enter__(self) -> Server:
        environment = {**os.environ, "DLCC_TOKEN": TOKEN}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        assert told.startswith("listening on 127.0.0.1:"), told + self.complaints
        self.place = told.split()[-1]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=20)

    @property
    def complaints(self) -> str:
        """What it wrote to its standard error."""
        return self._log.read_text()

    def board(self) -> Board:
        return Board(self.place, TOKEN)

    def connect(self) -> socket.socket:
        host, _, port = self.place.rpartition(":")
        return socket.create_connection((host, int(port)), 20)

    def client(self) -> socket.socket:
        """A connection that has proved the token and read what the board says of itself."""
        connection = self.connect()
        nonce = receive(connection)[2]
        proof = hmac.new(TOKEN.encode(), nonce, hashlib.sha256).digest()
        send(connection, Ask.PROVE, VERSION, proof)
        receive(connection)
        return connection


def send(connection: socket.socket, kind: int, argument: int = 0, body: bytes = b"") -> None:
    connection.sendall(HEADER.pack(kind, argument, len(body)) + body)


def receive(connection: socket.socket) -> tuple[int, int, bytes]:
    kind, argument, length = HEADER.unpack(_read(connection, HEADER.size))
    return kind, argument, _read(connection, length)


def _read(connection: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        got = connection.recv(size - len(parts))
        if not got:
            raise EOFError
        parts += got
    return parts


def bad_program(name: str, code: bytes, triple: str = TRIPLE) -> Program:
    """A network of one step, which is the kernel ``name`` of kernels.c."""
    return Program(
        name=name,
        inputs=(TensorInfo("x", "int32", (4,)),),
        outputs=(TensorInfo("y", "int32", (4,)),),
        steps=(Step("layer", name, (Arg("input"), Arg("output")), 4),),
        arena_bytes=0,
        weights=b"",
        weight_entries=(),
        object_code=code,
        triple=triple,
        features=(),
        threads=1,
    )
