"""Builds a program around a network's static library and runs it on an emulated Cortex-M board."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlcc.artifact.toolchain import Toolchain
from dlcc.objects.elf import ElfFile

QEMU = shutil.which("qemu-system-arm")
FIRMWARE = Path(__file__).with_name("firmware")


@dataclass(frozen=True)
class Board:
    """An FPGA image that qemu emulates, where its memory is, and how code is made for its core."""

    machine: str
    core: str
    triple: str
    flash: int
    ram: int
    flash_bytes: int = 512 << 10
    ram_bytes: int = 2 << 20


_ARMV7 = "thumbv7em-unknown-none-gnueabihf"
_ARMV8 = "thumbv8m.main-unknown-none-gnueabihf"
_ARMV81 = "thumbv8.1m.main-unknown-none-gnueabihf"

BOARDS = {
    "cortex-m4": Board("mps2-an386", "cortex_m4", _ARMV7, 0, 0x20000000, ram_bytes=4 << 20),
    "cortex-m7": Board("mps2-an500", "cortex_m7", _ARMV7, 0, 0x20000000, ram_bytes=4 << 20),
    "cortex-m33": Board("mps2-an505", "cortex_m33", _ARMV8, 0x10000000, 0x38000000),
    "cortex-m55": Board("mps3-an547", "cortex_m55", _ARMV81, 0x10000000, 0x31000000),
}


@dataclass(frozen=True)
class Run:
    """What came of it.

    Attributes:
        outputs: the network's output for each sample, as bytes.
        flash: bytes of the network's code and constants, as linked.
        writable: bytes of the network's own variables.
        stack: bytes of stack that one inference takes.
        instructions: executed by one inference.
    """

    outputs: np.ndarray
    flash: int
    writable: int
    stack: int
    instructions: int


def run(board: Board, artifact: Path, name: str, samples: np.ndarray, work: Path) -> Run:
    """Runs the static library ``artifact/lib<name>.a`` on ``samples``, one a row."""
    assert QEMU is not None
    work.mkdir(parents=True, exist_ok=True)
    elf = work / "program.elf"
    _link(board, artifact, name, samples, work)
    command = [QEMU, "-M", board.machine, "-nographic", "-monitor", "none", "-serial", "none"]
    command += ["-icount", "shift=0", "-semihosting-config", "enable=on,target=native"]
    done = subprocess.run(
        [*command, "-kernel", elf.name], cwd=work, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(line.split() for line in (done.stdout + done.stderr).splitlines())
    outputs = np.fromfile(work / "outputs.bin", np.uint8).reshape(len(samples), -1)
    sizes = {s.name: s.size for s in ElfFile(elf.read_bytes()).sections}
    return Run(
        outputs,
        sizes[".network_code"] + sizes[".network_constants"],
        sizes.get(".network_writable", 0),
        int(told["stack"]),
        round(int(told["ticks"]) * 2_000_000 / int(told["loop"])),
    )


def _link(board: Board, artifact: Path, name: str, samples: np.ndarray, work: Path) -> None:
    for file in ("start.c", "start.h"):
        shutil.copy(FIRMWARE / file, work)
    main = (FIRMWARE / "main.c.in").read_text()
    values = {"name": name, "NAME": name.upper(), "count": len(samples)}
    places = {
        "flash": board.flash,
        "flash_bytes": board.flash_bytes,
        "ram": board.ram,
        "ram_bytes": board.ram_bytes,
    }
    script = (FIRMWARE / "board.ld.in").read_text()
    for key, value in (values | places).items():
        main, script = (text.replace(f"@{key}@", str(value)) for text in (main, script))
    (work / "main.c").write_text(main)
    (work / "board.ld").write_text(script)
    (work / "samples.bin").write_bytes(np.ascontiguousarray(samples).tobytes())
    (work / "samples.S").write_text(
        '.section .samples,"a",%progbits\n.balign 8\n.globl samples\nsamples:\n'
        '.incbin "samples.bin"\n'
    )
    tools = Toolchain(board.triple, work)
    objects = []
    for source in ("start.c", "main.c", "samples.S"):
        tools.compile(source, f"{source}.o", include=artifact)
        objects.append(f"{source}.o")
    shutil.copy(artifact / f"lib{name}.a", work)
    tools._run(["ar", "x", f"lib{name}.a"])
    (work / f"{name}.o").rename(work / "network.o")
    tools._run(["ld.lld", "-T", "board.ld", *objects, "network.o", "-o", "program.elf"])
