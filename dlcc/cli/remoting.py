"""The options of verbs that can run a network on a board, and the verb that makes its server."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlcc.cli.common import JsonOption, check_writable_file
from dlcc.cli.console import Console, bytes_text
from dlcc.errors import DlccError, ExitCode

if TYPE_CHECKING:
    from dlcc.remote import Board

RemoteOption = Annotated[
    str | None,
    typer.Option(
        "--remote",
        metavar="HOST:PORT",
        help="Run on the board with this dlcc-server.",
        show_default=False,
    ),
]
TokenOption = Annotated[
    str,
    typer.Option(
        "--token",
        envvar="DLCC_TOKEN",
        metavar="TEXT",
        help="What dlcc-server was started with.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("server")(build_server_program)


def connected(remote: str | None, token: str) -> AbstractContextManager[Board | None]:
    """The board that --remote names; None without.

    Raises:
        DlccError: USAGE without a token, REMOTE if the board cannot be reached.
    """
    if remote is None:
        return nullcontext()
    if not token:
        raise DlccError(
            ExitCode.USAGE,
            "--remote needs a token",
            why="dlcc-server runs what it is sent, and only for those who know its token",
            fix="give it by --token or DLCC_TOKEN; dlcc-server prints it where it has made one up",
        )
    from dlcc.remote import Board

    return Board(remote, token)


def build_server_program(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="The program to write."),
    ] = Path("dlcc-server"),
    target: Annotated[
        str, typer.Option("--target", help="The board, as for `dlcc compile`.")
    ] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Make the program that runs networks on a board, for --remote of other verbs."""
    console = Console(as_json)
    check_writable_file(output)
    from dlcc.remote import build_server
    from targets import get_target

    machine = get_target(target)
    build_server(machine.triple, output)
    size = output.stat().st_size
    console.line(f"wrote {output}: {bytes_text(size)}, for {machine.triple}")
    console.line(f"start it on the board: DLCC_TOKEN=... ./{output.name} --listen 0.0.0.0:7490")
    console.json({"file": output, "bytes": size, "triple": machine.triple})
