"""The messages of ``dlcc-server``: ``dlcc/runtime/c/server/frame.h`` in Python."""

from __future__ import annotations

import hashlib
import hmac
import socket
import struct
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final

from dlcc.errors import DlccError, ExitCode
from dlcc.runtime.binding import status_error

VERSION: Final = 2
PORT: Final = 7490
_HEADER: Final = struct.Struct("<IIQ")
_CONNECT_SECONDS = 10.0
_PART_SECONDS = 5.0
_NONCE_BYTES = 32
_MOST_TEXT = 1 << 20
_SPARE_SECONDS = 90.0
"""The server gives up on a network itself; this much later nobody is there."""


class Ask(IntEnum):
    """Requests."""

    PROVE = 1
    STORE = 2
    OPEN = 3
    INPUTS = 4
    OUTPUTS = 5
    TIMES = 6
    PROFILE = 7
    CLOSE = 8


class Answer(IntEnum):
    """Answers."""

    GREETING = 64
    FAILED = 65
    BOARD = 66
    DONE = 67
    OPENED = 68
    OUTPUTS = 69
    TIMES = 70
    PROFILE = 71


class Failure(IntEnum):
    """Why a request failed; a status of the library's interface is added to ``STATUS``."""

    PROTOCOL = 1
    VERSION = 2
    TOKEN = 3
    BUSY = 4
    LIMIT = 5
    LIBRARY = 6
    CRASH = 7
    TIME = 8
    SYSTEM = 9
    STATUS = 1000


_WORDS: Final = {
    Failure.PROTOCOL: "the board refused a message",
    Failure.VERSION: "the board's server is of another version",
    Failure.TOKEN: "the board refused the token",
    Failure.BUSY: "the board is busy",
    Failure.LIMIT: "the board's limits are reached",
    Failure.LIBRARY: "the board cannot load the library",
    Failure.CRASH: "the network crashed on the board",
    Failure.TIME: "the network took too long on the board",
    Failure.SYSTEM: "the board lacks resources",
}
_FIXES: Final = {
    Failure.VERSION: "build the server again with this dlcc: dlcc server --target ...",
    Failure.TOKEN: "give the server's token by --token or DLCC_TOKEN",
    Failure.BUSY: "try again when the other client has ended",
    Failure.LIBRARY: "compile the model for the board's target",
}


class Connection:
    """A connection to a server: each request has one answer.

    Args:
        place: ``host:port``, ``host`` or ``[address]:port``.
        token: what the server was started with.

    Raises:
        DlccError: USAGE for a place that is none, REMOTE if nobody answers, who answers is not a
            server of this version, it is busy or does not take the token.
    """

    def __init__(self, place: str, token: str) -> None:
        self.place = place
        self.board = b""
        self._lost = False
        try:
            self._socket = socket.create_connection(parse_place(place), _CONNECT_SECONDS)
        except OSError as error:
            raise remote_error(
                "the board cannot be reached",
                place,
                error.strerror or str(error) or type(error).__name__,
                "start dlcc-server there; it listens on 127.0.0.1 unless --listen says otherwise",
            ) from None
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._introduce(token)
        except BaseException:
            self._socket.close()
            raise

    def _introduce(self, token: str) -> None:
        kind, version, nonce = self._receive(_NONCE_BYTES)
        if kind != Answer.GREETING or len(nonce) != _NONCE_BYTES:
            raise self._stranger()
        if version != VERSION:
            raise self._failure(
                Failure.VERSION, f"it speaks version {version} of the protocol, dlcc {VERSION}"
            )
        proof = hmac.new(token.encode(), nonce, hashlib.sha256).digest()
        self.board = self.ask(Ask.PROVE, VERSION, proof, wanted=Answer.BOARD)[1]

    def wait_up_to(self, seconds: float) -> None:
        """Sets how long an answer may take: the server's own limit is ``seconds``."""
        self._socket.settimeout(seconds + _SPARE_SECONDS)

    def ask(
        self, kind: Ask, argument: int = 0, body: bytes = b"", *, wanted: Answer
    ) -> tuple[int, bytes]:
        """Sends a request and returns argument and body of its answer.

        Raises:
            DlccError: what the server says, or REMOTE if it is gone.
        """
        self._send(_HEADER.pack(kind, argument, len(body)), body)
        return self._answer(wanted)

    def store(self, file: int, path: Path) -> None:
        """Sends a file.

        Raises:
            DlccError: as :meth:`ask`.
        """
        with path.open("rb") as content:
            size = content.seek(0, 2)
            content.seek(0)
            self._send(_HEADER.pack(Ask.STORE, file, size))
            try:
                self._socket.sendfile(content, 0, size)
            except OSError as error:
                self._last_words(error)
        self._answer(Answer.DONE)

    @property
    def lost(self) -> bool:
        """Whether no request can be made any more."""
        return self._lost

    def close(self) -> None:
        """Ends the connection; what was opened on the board ends with it.

        Returns when it has ended there, so that the next client does not find the board busy.
        """
        if not self._lost:
            self._lost = True
            with suppress(OSError):
                self._socket.settimeout(_PART_SECONDS)
                self._socket.shutdown(socket.SHUT_WR)
                while self._socket.recv(1 << 16):
                    pass
        self._socket.close()

    def _send(self, *parts: bytes) -> None:
        try:
            for part in parts:
                self._socket.sendall(part)
        except OSError as error:
            self._last_words(error)

    def _last_words(self, error: OSError) -> None:
        """Raises what a server that has parted said before, else that it is gone."""
        try:
            self._answer(Answer.DONE)
        except DlccError as told:
            raise told from None
        raise self._gone(error.strerror or str(error))

    def _answer(self, wanted: Answer) -> tuple[int, bytes]:
        kind, argument, body = self._receive()
        if kind != wanted:
            raise self._stranger()
        return argument, body

    def _receive(self, most: int = 0) -> tuple[int, int, bytes]:
        kind, argument, length = _HEADER.unpack(self._read(_HEADER.size))
        if kind not in list(Answer):
            raise self._stranger()
        if kind == Answer.FAILED:
            if length > _MOST_TEXT:
                raise self._stranger()
            raise self._failure(argument, self._read(length).decode("utf-8", "replace"))
        if most and length > most:
            raise self._stranger()
        return kind, argument, self._read(length)

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                got = self._socket.recv(min(size - len(parts), 1 << 20))
            except OSError as error:
                raise self._gone(error.strerror or str(error)) from None
            if not got:
                raise self._gone("it closed the connection")
            parts += got
        return bytes(parts)

    def _failure(self, code: int, why: str) -> DlccError:
        if code >= Failure.STATUS:
            return status_error(code - Failure.STATUS, why, self.place)
        try:
            failure = Failure(code)
        except ValueError:
            return remote_error(f"the board answers with failure {code}", self.place, why, "")
        self._lost |= failure == Failure.PROTOCOL  # after which the server parts
        if failure == Failure.LIBRARY:
            fix = _FIXES[failure]
            return DlccError(ExitCode.ARTIFACT, _WORDS[failure], where=self.place, why=why, fix=fix)
        words, mark, fix = why.partition("; start ")
        fix = mark[2:] + fix if mark else _FIXES.get(failure, "")
        return remote_error(_WORDS[failure], self.place, words, fix)

    def _stranger(self) -> DlccError:
        self._lost = True
        return remote_error(
            "what answers is no dlcc-server", self.place, "its messages are of another protocol", ""
        )

    def _gone(self, why: str) -> DlccError:
        self._lost = True
        return remote_error(
            "the board's server is gone",
            self.place,
            why,
            "see whether dlcc-server still runs there, and what it printed",
        )


def remote_error(what: str, place: str, why: str, fix: str) -> DlccError:
    """A failure of the class REMOTE."""
    return DlccError(ExitCode.REMOTE, what, where=place, why=why, fix=fix)


def parse_place(place: str) -> tuple[str, int]:
    """Host and port of ``host:port``, ``host`` or ``[address]:port``.

    Raises:
        DlccError: USAGE, for anything else.
    """
    host, colon, port = place.rpartition(":")
    if not colon or place.endswith("]"):
        host, port = place, str(PORT)
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16:
        return host, int(port)
    raise DlccError(
        ExitCode.USAGE,
        "the board's place cannot be read",
        where=f"--remote {place}",
        why="it is not of the form HOST:PORT",
        fix=f"write for example --remote 192.168.1.20:{PORT}",
    )


__all__ = ["PORT", "VERSION", "Answer", "Ask", "Connection", "Failure", "parse_place"]
