"""A server on this machine: what it computes and measures, and what can go wrong."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlcc.artifact import Artifact, write_artifact
from dlcc.errors import DlccError, ExitCode
from dlcc.remote import Board, RemoteNetwork
from dlcc.remote.protocol import VERSION, Ask, Failure
from tests.remote.serving import HEADER, TOKEN, Server, receive, send
from tests.runtime.programs import (
    COLUMNS,
    ROWS,
    compile_kernels,
    missing_feature,
    row_program,
    row_reference,
)

X = np.random.default_rng(3).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def refused(place: str = "", token: str = TOKEN) -> DlccError:
    with pytest.raises(DlccError) as caught:
        Board(place, token)
    return caught.value


# -- what it is for ----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_network_runs_and_is_timed(server: Server, rows: Artifact, threads: int) -> None:
    with server.board() as board:
        network = RemoteNetwork(board, rows.folder, threads)
        assert network.threads == threads or threads == 0
        for x in (X, -X):
            np.testing.assert_array_equal(network.run({"x": x})["y"], row_reference(x))
        times = network.model.times(0.0, 7, 7)
        assert len(times) == 7
        assert min(times) > 0
        assert len(network.model.times(0.01, 1)) > 1  # as many as fit in the time
        steps = network.profile({"x": X}, least_seconds=0.0, least_runs=3, most_runs=3)
        assert [len(run) for run in steps] == [2, 2, 2]
        network.close()


def test_the_board_tells_what_it_is(server: Server) -> None:
    with server.board() as board:
        assert board.facts["architecture"] == "x86_64"
        assert board.facts["seconds"] == 2
        assert board.facts["cpus"] >= 1
        assert "sse2" in board.features
        assert "x86_64" in board.describe()
        board.facts["cores"] = ["0x41:0xd08", "0x41:0xd08", "0x41:0xfff"]
        assert board.cpu == "Cortex-A72 + 0x41:0xfff"
        board.facts |= {"kilohertz": "600000", "most_kilohertz": "1800000", "governor": "ondemand"}
        assert board.describe().endswith("600 of 1800 MHz, governor ondemand")


def test_networks_are_open_side_by_side(server: Server, rows: Artifact) -> None:
    with server.board() as board:
        first, second = RemoteNetwork(board, rows.folder, 1), RemoteNetwork(board, rows.folder, 2)
        np.testing.assert_array_equal(first.run({"x": X})["y"], row_reference(X))
        np.testing.assert_array_equal(second.run({"x": -X})["y"], row_reference(-X))
        np.testing.assert_array_equal(
            np.frombuffer(first.model.outputs(), np.float32).reshape(X.shape), row_reference(X)
        )


# -- who may use it ----------------------------------------------------------------------------


def test_a_wrong_token_is_refused(server: Server) -> None:
    error = refused(server.place, TOKEN + "!")
    assert error.code == ExitCode.REMOTE
    assert error.what == "the board refused the token"
    assert "DLCC_TOKEN" in error.fix


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = refused(f"127.0.0.1:{unused.getsockname()[1]}")
    assert error.code == ExitCode.REMOTE
    assert "refused" in error.why
    assert "--listen" in error.fix


@pytest.mark.parametrize("place", ["", ":1", "host:0", "host:70000", "host:a"])
def test_a_place_that_is_none(place: str) -> None:
    assert refused(place).code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", "no dlcc-server"),
        (HEADER.pack(64, VERSION + 1, 32) + bytes(32), "another version"),
        (HEADER.pack(65, 77, 4) + b"soso", "failure 77"),
        (HEADER.pack(65, 1, 1 << 40), "no dlcc-server"),
        (HEADER.pack(64, VERSION, 32), "is gone"),
        (
            HEADER.pack(64, VERSION, 32) + bytes(32) + HEADER.pack(66, 0, 2) + b"{}",
            "cannot be read",
        ),
    ],
)
def test_another_server_answers(answer: bytes, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                with suppress(ConnectionError):
                    while connection.recv(1000):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        error = refused(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert words in error.what
    assert error.code == ExitCode.REMOTE


def test_a_client_of_another_version_is_refused(server: Server) -> None:
    with server.connect() as connection:
        receive(connection)
        send(connection, Ask.PROVE, VERSION + 1, bytes(32))
        _, failure, words = receive(connection)
    assert failure == Failure.VERSION
    assert f"version {VERSION + 1}".encode() in words


def test_one_client_at_a_time(server: Server, rows: Artifact) -> None:
    with server.board() as board:
        error = refused(server.place)
        assert "busy" in error.what
        RemoteNetwork(board, rows.folder).close()
    server.board().close()  # and then the next one


# -- what it is sent ---------------------------------------------------------------------------


def test_libraries_that_cannot_be_loaded(server: Server, rows: Artifact) -> None:
    def failure(library: bytes, name: bytes = b"rows") -> tuple[int, bytes]:
        send(client, Ask.STORE, 0, library)
        receive(client)
        send(client, Ask.OPEN, 1, name)
        return receive(client)[1:]

    path = rows.path(".so")
    assert path is not None
    library = path.read_bytes()
    foreign = library[:18] + (183).to_bytes(2, "little") + library[20:]
    with server.client() as client:
        code, words = failure(foreign)
        assert code == Failure.LIBRARY
        assert b"ELF machine 183" in words
        assert b"x86_64" in words
        assert b"not an ELF file" in failure(b"text")[1]
        code, words = failure(library[:2000])  # the loader of glibc ends with a bus error
        assert code == Failure.CRASH
        assert b"while it was loaded" in words
        assert b"no function other_" in failure(library, b"other")[1]
        code, words = failure(library)
        assert code == Failure.STATUS + 3  # and where there is no weights file
        assert b"weights" in words


def test_a_library_for_another_machine(server: Server, rows: Artifact) -> None:
    with server.board() as board:
        board.facts["architecture"] = "aarch64"
        with pytest.raises(DlccError, match="for another machine") as caught:
            RemoteNetwork(board, rows.folder)
    assert caught.value.code == ExitCode.ARTIFACT


def test_a_cpu_without_a_feature(server: Server, tmp_path: Path) -> None:
    feature = missing_feature()
    program = replace(row_program(compile_kernels(tmp_path)), features=("sse2", feature))
    write_artifact(program, tmp_path / "out")
    with server.board() as board, pytest.raises(DlccError, match=f"needs {feature}") as caught:
        RemoteNetwork(board, tmp_path / "out")
    assert caught.value.code == ExitCode.TARGET
    assert "--target cpu:" in caught.value.fix


def test_numbers_of_threads_and_inputs_are_checked(server: Server, rows: Artifact) -> None:
    with server.board() as board:
        for threads in (-1, 5):
            with pytest.raises(DlccError, match=f"threads is {threads}") as caught:
                RemoteNetwork(board, rows.folder, threads)
            assert caught.value.code == ExitCode.USAGE
        network = RemoteNetwork(board, rows.folder)
        with pytest.raises(DlccError, match="does not fit") as caught:
            network.run({"x": X.astype(np.float64)})
        assert caught.value.code == ExitCode.DATA
        np.testing.assert_array_equal(network.run({"x": X})["y"], row_reference(X))


def test_files_beyond_the_limit(server: Server, rows: Artifact) -> None:
    with server.board() as board:
        board.facts["megabytes"] = 0.001
        with pytest.raises(DlccError, match="too large") as caught:
            RemoteNetwork(board, rows.folder)
        assert "--megabytes" in caught.value.fix
    with server.client() as client:
        send(client, Ask.STORE, 0, bytes(30_000_000))
        receive(client)
        send(client, Ask.STORE, 1, bytes(30_000_000))
        assert receive(client)[1] == Failure.LIMIT
        client.sendall(HEADER.pack(Ask.STORE, 1, 1 << 60))
        assert receive(client)[1] == Failure.LIMIT


# -- what goes wrong meanwhile -----------------------------------------------------------------


def open_bad(board: Board, bad: dict[str, Artifact], name: str, value: int) -> RemoteNetwork:
    network = RemoteNetwork(board, bad[name].folder)
    network.model.set_inputs([np.full(4, value, np.int32)])
    return network


def test_crashes_and_hangs_come_back_as_words(
    server: Server, rows: Artifact, bad: dict[str, Artifact]
) -> None:
    with server.board() as board:
        beside = RemoteNetwork(board, rows.folder)
        for name, words, code in (
            ("illegal", "signal 4", ExitCode.REMOTE),
            ("endless", "within 2 s", ExitCode.REMOTE),
            ("refusing", "returned 1", ExitCode.INTERNAL),
        ):
            well = open_bad(board, bad, name, 0)
            assert well.model.outputs() == bytes(16)
            network = open_bad(board, bad, name, 1)
            with pytest.raises(DlccError, match=words) as caught:
                network.model.times(0.0, 1)
            assert caught.value.code == code
            assert ("--seconds" in caught.value.fix) == (name == "endless")
            network.close()  # as a with statement does: nothing is left to end
            assert well.model.outputs() == bytes(16)
            np.testing.assert_array_equal(beside.run({"x": X})["y"], row_reference(X))


def test_the_server_goes_away(
    server_program: Path, bad: dict[str, Artifact], tmp_path: Path
) -> None:
    with Server([str(server_program)], tmp_path) as server, server.board() as board:
        network = open_bad(board, bad, "endless", 1)
        threading.Timer(0.3, server.process.kill).start()
        with pytest.raises(DlccError) as caught:
            network.model.outputs()
        network.close()
    error = caught.value
    assert error.code == ExitCode.REMOTE
    assert error.what == "the board's server is gone"


def test_a_client_that_leaves_takes_its_networks_with_it(
    server_program: Path, bad: dict[str, Artifact], tmp_path: Path
) -> None:
    with Server([str(server_program)], tmp_path, "--seconds", "1000") as server:
        board = server.board()
        model = open_bad(board, bad, "endless", 1).model
        leave = threading.Timer(0.1, board._connection._socket.shutdown, [socket.SHUT_RDWR])
        leave.start()
        with pytest.raises(DlccError, match="is gone"):
            model.outputs()
        leave.join()
        board.close()
        server.board().close()  # the session is over long before its limit of time


# -- what no client sends ----------------------------------------------------------------------


def test_messages_out_of_place(server: Server) -> None:
    for kind, argument, body, words in (
        (99, 0, b"", "no request 99"),
        (Ask.PROVE, VERSION, bytes(32), "no request 1"),
        (Ask.STORE, 2, b"x", "no kind 2"),
        (Ask.OPEN, 1, b"net", "must be stored"),
        (Ask.OPEN, 1, b"a/../b", "not that of a C function"),
        (Ask.OPEN, 1, b"a\0b", "not that of a C function"),
        (Ask.OPEN, 1, b"", "1 to 255"),
        (Ask.OPEN, 1, bytes(256), "1 to 255"),
        (Ask.OUTPUTS, 0, b"", "no network is open under number 0"),
        (Ask.INPUTS, 1 << 31, b"", "no network is open"),
        (Ask.CLOSE, 0, b"x", "has 1 bytes, 0 are needed"),
    ):
        with server.client() as client:
            send(client, kind, argument, body)
            _, failure, told = receive(client)
            assert failure == Failure.PROTOCOL
            assert words in told.decode()
            assert client.recv(1) == b""
    with server.connect() as client:
        receive(client)
        send(client, Ask.STORE, 0, b"x")
        assert b"must prove" in receive(client)[2]


def test_noise_harms_nobody(server: Server, rows: Artifact) -> None:
    """Random headers with kinds and lengths near the valid ones, cut off anywhere."""
    rng = random.Random(7)
    lengths = (0, 1, 4, 16, 32, 255, 4096, 1 << 20, 1 << 31, (1 << 64) - 1)
    for number in range(120):
        with server.client() if number % 4 else server.connect() as client:
            message = b""
            for _ in range(rng.randrange(1, 5)):
                length = rng.choice(lengths)
                message += HEADER.pack(rng.randrange(11), rng.choice((0, 1, 2, 99)), length)
                message += rng.randbytes(min(length, rng.choice((length, 5, 40, 5000))) % 100_000)
            with suppress(ConnectionError):
                client.sendall(message[: rng.randrange(1, len(message) + 1)])
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):  # the server may take its time to part
                    pass
    with server.board() as board:
        network = RemoteNetwork(board, rows.folder)
        np.testing.assert_array_equal(network.run({"x": X})["y"], row_reference(X))
