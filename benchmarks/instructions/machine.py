"""An arm64 Python with LiteRT in a folder, and what it executes under qemu-user."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.catalogue import ENVIRONMENTS
from dlcc.cycles.emulator import count_phases, one_run

PYTHON = "3.11"
PACKAGES = (
    *("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8"),
    *(f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib"),
)
"""Debian packages, for arm64."""
WHEELS = (*ENVIRONMENTS["litert"].requirements[:1], "numpy")
_GUEST = Path(__file__).with_name("guest.py")
_RUNS = 2
"""As guest.py has it."""


@dataclass(frozen=True)
class Cpu:
    """One kind of core.

    Attributes:
        qemu: the emulator's name of it.
        target: dlcc's.
        part: its number in /proc/cpuinfo: LiteRT chooses kernels by it.
        name: as the table shows it.
    """

    qemu: str
    target: str
    part: str
    name: str


CPUS = (
    Cpu("cortex-a72", "arm:cortex-a72", "0xd08", "Cortex-A72"),
    Cpu("cortex-a76", "arm:cortex-a76", "0xd0b", "Cortex-A76 (dotprod)"),
    Cpu("max", "arm:cortex-x3", "0xd4e", "Cortex-X3 (i8mm)"),
)


def set_up(root: Path, say: Callable[[str], None]) -> None:
    """Downloads and unpacks an arm64 Python with LiteRT, unless it is there.

    apt keeps to a folder of its own: nothing is installed on this machine.
    """
    if (root / "site" / "ai_edge_litert").is_dir():
        return
    say("downloading an arm64 Python and LiteRT")
    apt = root / "apt"
    for folder in ("state", "lists/partial", "cache/archives/partial", "packages", "wheels"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "apt.conf").write_text(
        'APT::Architecture "arm64"; APT::Architectures { "arm64"; };\n'
        f'Dir::State "{apt}/state"; Dir::State::status "{apt}/status";\n'
        f'Dir::State::lists "{apt}/lists"; Dir::Cache "{apt}/cache";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    quiet = {"env": environment, "check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(["apt-get", "update", "-qq"], **quiet)
    subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=apt / "packages", **quiet)
    for package in sorted((apt / "packages").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    platforms = [f"manylinux_2_{n}_aarch64" for n in (17, 27, 28)]
    chosen = [option for name in platforms for option in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *chosen]
    command += ["--only-binary=:all:", "--python-version", PYTHON, "-d", str(apt / "wheels")]
    subprocess.run([*command, *WHEELS], check=True)
    for wheel in sorted((apt / "wheels").glob("*.whl")):
        subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, root / "site"], check=True)


def describe_machine(root: Path, cpu: Cpu) -> None:
    """One core of this kind as Linux tells of it, in place of the host's /proc and /sys.

    The emulator opens files below its sysroot first. Without these LiteRT reads of the host's x86
    cores and crashes; by them it knows the core whose kernels it has.
    """
    folder = root / "sys" / "devices" / "system" / "cpu"
    lists = ("core_siblings_list", "thread_siblings_list", "core_cpus_list", "package_cpus_list")
    files = {
        root / "proc" / "cpuinfo": (
            "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd\n"
            "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\n"
            f"CPU part\t: {cpu.part}\nCPU revision\t: 0\n\n"
        ),
        **{folder / name: "0\n" for name in ("kernel_max", "possible", "present", "online")},
        **{
            folder / "cpu0" / "topology" / name: "0\n"
            for name in (*lists, "cluster_cpus_list", "physical_package_id", "core_id")
        },
        folder / "cpu0" / "cpufreq" / "cpuinfo_max_freq": "2000000\n",
        folder / "cpu0" / "cpufreq" / "cpuinfo_min_freq": "600000\n",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def litert_instructions(root: Path, model: Path, cpu: Cpu) -> Counter[str]:
    """Instructions of one ``invoke`` by the file they are in; those of Python are left out.

    Args:
        root: of :func:`set_up`.
        model: a .tflite file.
        cpu: to emulate.
    """
    describe_machine(root, cpu)
    python = root / "usr" / "bin" / f"python{PYTHON}"
    with tempfile.TemporaryDirectory(prefix="dlcc-litert-") as work:
        maps = Path(work) / "maps"
        options = ["-cpu", cpu.qemu, "-L", str(root)]
        for name, path in (("PYTHONHOME", root / "usr"), ("PYTHONPATH", root / "site")):
            options += ["-E", f"{name}={path}"]
        command = [python, "-S", _GUEST, model, maps]
        phases = count_phases("qemu-aarch64", command, Path(work), options)
        places = mapped_files(maps.read_text())
    counts: Counter[str] = Counter()
    for (address, instructions), runs in one_run(phases).items():
        name = next((n for first, end, n in places if first <= address < end), "elsewhere")
        counts[name] += instructions * runs
    return Counter({n: round(c / _RUNS) for n, c in counts.items() if not n.startswith("python")})


def mapped_files(maps: str) -> list[tuple[int, int, str]]:
    """First address, end, and name of the file ("" for none) of each line of /proc/PID/maps."""
    places = []
    for line in maps.splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        first, end = span.split("-")
        places.append((int(first, 16), int(end, 16), Path(*name).name))
    return places
