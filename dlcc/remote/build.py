"""Compiles ``dlcc-server`` for a board."""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

from dlcc.artifact.literals import c_string
from dlcc.artifact.manifest import compiler_name
from dlcc.artifact.toolchain import Toolchain
from dlcc.errors import DlccError, ExitCode


def build_server(triple: str, output: Path) -> None:
    """Writes the server as a program for Linux with the libc of the compiled libraries.

    Equal versions of dlcc and ziglang write equal bytes.

    Args:
        triple: LLVM triple of the board's target.
        output: the file to write, executable.

    Raises:
        DlccError: TARGET if there is no runtime for the triple, OUTPUT if the file cannot be
            written.
    """
    if "linux" not in triple.split("-"):
        raise DlccError(
            ExitCode.TARGET,
            f"there is no server for {triple}",
            where="--target",
            why="it is a program for Linux: it needs processes and a network",
            fix="see docs/arm.md for boards that can be measured",
        )
    with tempfile.TemporaryDirectory(prefix="dlcc-server-") as name:
        folder = Path(name)
        tools = Toolchain(triple, folder)
        with as_file(files("dlcc.runtime").joinpath("c")) as runtime:
            for source in [*(runtime / "server").iterdir(), *runtime.glob("cpu_*.h")]:
                shutil.copyfile(source, folder / source.name)
            interface = (runtime / "api.h.in").read_text("utf-8")
        (folder / "network.h").write_text(_any_network(interface))
        version = c_string(f"dlcc-server of {compiler_name()}")
        (folder / "build.h").write_text(f"#define SERVER_VERSION {version}\n")
        tools.link_program(["server.c"], "dlcc-server", ["-ldl"])
        try:
            shutil.copyfile(folder / "dlcc-server", output)
            output.chmod(0o755)
        except OSError as error:
            raise DlccError(
                ExitCode.OUTPUT,
                "the server cannot be written",
                where=str(output),
                why=error.strerror or str(error),
                fix="choose another file with -o",
            ) from None


def _any_network(template: str) -> str:
    """The interface of every compiled network, under the name ``network``."""
    names = {"name": "network", "NAME": "NETWORK"}
    names |= dict.fromkeys(("scales", "device_calls", "device_codes"), "")
    return re.sub(r"@(\w+)@", lambda mark: names.get(mark[1], "0"), template)
