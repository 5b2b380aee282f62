"""The typer application, and the boundary where every failure becomes one message and a code."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dlcc.cli import building, listing, remoting, running, sensitivity, tuning
from dlcc.cli.console import Console
from dlcc.errors import DlccError, ExitCode

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

EXIT_CODES = {
    ExitCode.OK: "success",
    ExitCode.INTERNAL: "a fault in dlcc itself (DLCC_TRACEBACK=1 shows where)",
    ExitCode.USAGE: "wrong option, argument or pipeline text",
    ExitCode.INPUT_FILE: "a model file is missing, unreadable or of another format",
    ExitCode.MODEL: "the model is not valid",
    ExitCode.UNSUPPORTED: "the model holds something dlcc does not support",
    ExitCode.DATA: "a data file is missing or does not fit the network",
    ExitCode.PASS: "a pass could not do what was asked",
    ExitCode.TARGET: "unknown target, or this machine lacks a CPU feature",
    ExitCode.ARTIFACT: "the artifact is missing, truncated, corrupt or of another version",
    ExitCode.OUTPUT: "the output cannot be written",
    ExitCode.VERIFICATION: "--verify-numerics or --verify found a difference that must not be",
    ExitCode.REMOTE: "the board cannot be reached, refuses, or the network fails there",
    ExitCode.LIMIT: "the compilation needs more than --timeout or --max-memory allow",
}
"""What each exit code means: the text of ``--help`` and of docs/cli.md."""

_OPTIONAL_VALUES = {
    "--remarks": ("all", re.compile(r"[a-z][a-z0-9-]*")),
    "--verify-numerics": ("2", re.compile(r"-?\d+")),
}
"""Options that may stand alone: the value they then have, and what a value looks like."""

app = typer.Typer(
    name="dlcc",
    help="A deep-learning compression compiler: an ONNX file in, a small C library out.",
    epilog="\b\nExit codes:\n"
    + "\n".join(f"  {int(code):3}  {text}" for code, text in EXIT_CODES.items())
    + f"\n  {INTERRUPTED:3}  interrupted\n",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from dlcc import __version__

        sys.stdout.write(f"dlcc {__version__}\n")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """A deep-learning compression compiler: an ONNX file in, a small C library out."""


building.register(app)
running.register(app)
tuning.register(app)
sensitivity.register(app)
listing.register(app)
remoting.register(app)


def run_command_line(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn whatever fails into one message on standard error and a code."""
    arguments = fill_optional_values(list(sys.argv[1:] if argv is None else argv))
    console = Console("--json" in arguments)
    try:
        code = app(args=arguments, prog_name="dlcc", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # some versions of the argument parser turn Ctrl-C into a code
            sys.stderr.write("interrupted\n")
        return int(code or 0)
    except DlccError as error:
        console.error(error)
        _show_traceback()
        return int(error.code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe went away (`dlcc inspect ... | head`): not a failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return int(ExitCode.OK)
    except MemoryError:
        console.error(_out_of_memory())
        _show_traceback()
        return int(ExitCode.INTERNAL)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stdout.write(f"{error.ctx.get_help()}\n")  # type: ignore[attr-defined]
            return int(ExitCode.USAGE)
        if type(error).__name__ == "Abort":  # and others into an exception
            sys.stderr.write("interrupted\n")
            return INTERRUPTED
        told = _usage_error(error) or _path_error(error) or _internal_error(error)
        console.error(told)
        _show_traceback()
        return int(told.code)


def fill_optional_values(arguments: list[str]) -> list[str]:
    """Give ``--remarks`` and ``--verify-numerics`` their value where they stand alone."""
    out: list[str] = []
    for index, argument in enumerate(arguments):
        out.append(argument)
        if argument == "--":
            return out + arguments[index + 1 :]
        if argument in _OPTIONAL_VALUES:
            alone, form = _OPTIONAL_VALUES[argument]
            following = arguments[index + 1] if index + 1 < len(arguments) else ""
            if not form.fullmatch(following) or Path(following).exists():
                out[-1] = f"{argument}={alone}"
    return out


def _show_traceback() -> None:
    if os.environ.get("DLCC_TRACEBACK"):
        traceback.print_exc()


def _usage_error(error: Exception) -> DlccError | None:
    """A complaint of the argument parser in dlcc's form.

    Its classes live in a private module that differs between versions of typer, so they are known
    by their method.
    """
    message = getattr(error, "format_message", None)
    if message is None:
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "dlcc"
    text = str(message()).rstrip(".")
    return DlccError(
        ExitCode.USAGE, text[:1].lower() + text[1:], fix=f"`{command} --help` lists the options"
    )


def _path_error(error: Exception) -> DlccError | None:
    """A complaint about a path that no system call takes, whichever argument it came from."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
        return None
    return DlccError(
        ExitCode.USAGE,
        "a path cannot be used",
        where=f"{os.fsdecode(error.filename or '')[:80]}",
        why=error.strerror or str(error),
        fix="give a shorter path, without links that lead to themselves",
    )


def _internal_error(error: Exception) -> DlccError:
    lines = str(error).splitlines()
    why = f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
    notes = "; ".join(getattr(error, "__notes__", []))
    return DlccError(
        ExitCode.INTERNAL,
        "dlcc failed in a way it should not",
        why=f"{why} ({notes})" if notes else why,
        fix="run again with DLCC_TRACEBACK=1 in the environment and report the traceback",
    )


def _out_of_memory() -> DlccError:
    return DlccError(
        ExitCode.INTERNAL,
        "out of memory",
        fix="close other programs, or use fewer or smaller samples",
    )
