"""The C compiler and linker: zig's clang and lld, with their own libc and a fixed set of flags."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from dlcc.errors import DlccError, ExitCode
from dlcc.objects.merge import merge

GLIBC = "2.17"
"""The oldest glibc the libraries run with (2012)."""

# lld ignores --strip-debug together with -r.
_MERGE_SCRIPT = "SECTIONS { /DISCARD/ : { *(.debug*) *(.rela.debug*) *(.llvm_addrsig)%s } }\n"
# Firmware has no use for stack unwinding and for TVM's conversions of 16-bit floats.
_UNUSED = " *(.rel.debug*) *(.ARM.exidx*) *(.rel.ARM.exidx*) *(.text.tvm.fp16.conv)"
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "XDG_CACHE_HOME")


System = Literal["linux", "macos", "none"]


@dataclass(frozen=True)
class _Port:
    """A machine that the runtime is written for.

    ``zig``: zig's name of the architecture; ``baseline``: what its C code may use, where that is
    less clear than the architecture itself.
    """

    zig: str
    baseline: str = "baseline"


_PORTS: dict[tuple[str, System], _Port] = {
    ("x86_64", "linux"): _Port("x86_64"),
    ("aarch64", "linux"): _Port("aarch64"),
    # VFPv3 and NEON, but no fused multiply-add: Cortex-A8 and A9 have none
    ("armv7", "linux"): _Port("arm", "cortex_a9"),
    ("aarch64", "macos"): _Port("aarch64", "apple_m1"),
    ("thumbv7em", "none"): _Port("thumb", "cortex_m4"),
    ("thumbv8m.main", "none"): _Port("thumb", "cortex_m33"),
    ("thumbv8.1m.main", "none"): _Port("thumb", "cortex_m55"),
}
"""By the first part of the triple, and its system."""


def _system(triple: str) -> System | None:
    """The system of a triple; None where it is none that the runtime knows."""
    parts = triple.split("-")
    if parts[-1].startswith("macosx"):
        return "macos"
    if "gnu" not in parts[-1]:
        return None
    return "linux" if "linux" in parts else "none"


def _port(triple: str) -> _Port:
    system = _system(triple)
    port = None if system is None else _PORTS.get((triple.split("-")[0], system))
    if port is None:
        on = {s: ", ".join(a for a, b in _PORTS if b == s) for s in ("linux", "macos", "none")}
        raise DlccError(
            ExitCode.TARGET,
            f"no runtime for {triple}",
            why=f"the runtime is written for Linux with glibc on {on['linux']}, for macOS on "
            f"{on['macos']}, and for {on['none']} without a system",
            fix="compile for an x86_64-linux-gnu target",
        )
    return port


def is_bare(triple: str) -> bool:
    """Whether code for this triple runs without an operating system.

    Raises:
        DlccError: TARGET where the runtime has no port.
    """
    _port(triple)
    return _system(triple) == "none"


def is_macos(triple: str) -> bool:
    """Whether code for this triple is Mach-O.

    Raises:
        DlccError: TARGET where the runtime has no port.
    """
    _port(triple)
    return _system(triple) == "macos"


def zig_target(triple: str) -> str:
    """The zig name of an LLVM triple: ``x86_64-unknown-linux-gnu`` is ``x86_64-linux-gnu.2.17``.

    Raises:
        DlccError: TARGET where the runtime has no port.
    """
    libc, port = triple.split("-")[-1], _port(triple)
    if is_macos(triple):
        return f"{port.zig}-macos.{libc.removeprefix('macosx')}"
    if is_bare(triple):
        return f"{port.zig}-freestanding-{libc.removeprefix('gnu')}"
    return f"{port.zig}-linux-{libc if '.' in libc else f'{libc}.{GLIBC}'}"


def library_name(symbol: str, kind: str, triple: str) -> str:
    """File name of one form ("so", "a", "o", "c") of the network called ``symbol``."""
    if kind == "so":
        return f"lib{symbol}.dylib" if triple and is_macos(triple) else f"lib{symbol}.so"
    return f"lib{symbol}.a" if kind == "a" else f"{symbol}.{kind}"


def _static_target(triple: str) -> str:
    """The same with musl, of which a program that needs no other file can be made."""
    return (
        f"{_port(triple).zig}-linux-musl{triple.split('-')[-1].split('.')[0].removeprefix('gnu')}"
    )


def _cache_dir() -> Path:
    """Where zig keeps the libc it has built: as the environment says, else the user's cache."""
    chosen = os.environ.get("ZIG_GLOBAL_CACHE_DIR")
    if chosen:
        return Path(chosen)
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "dlcc" / "zig"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # no home, or not a writable one
        pass
    return _temporary_cache()


def _temporary_cache() -> Path:
    """A cache for users without a writable home; nobody else may have put anything there."""
    folder = Path(tempfile.gettempdir()) / f"dlcc-zig-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == os.getuid() and folder.is_dir():
            return folder
        reason = "it belongs to another user"
    except OSError as error:
        reason = error.strerror or str(error)
    raise DlccError(
        ExitCode.OUTPUT,
        "there is no place for the linker's cache",
        where=str(folder),
        why=f"{reason}, and the home directory is not writable",
        fix="set ZIG_GLOBAL_CACHE_DIR to a folder of your own",
    )


class Toolchain:
    """Runs the tools in one working folder; all files are named relative to it.

    Args:
        triple: LLVM triple of the target.
        folder: an existing folder for sources and results.
    """

    def __init__(self, triple: str, folder: Path) -> None:
        import ziglang  # type: ignore[import-untyped]

        self._zig = str(Path(ziglang.__file__).with_name("zig"))
        self._target = ("-target", zig_target(triple), f"-mcpu={_port(triple).baseline}")
        self._bare, self._macos = is_bare(triple), is_macos(triple)
        self._static_target = ("-target", _static_target(triple), self._target[-1])
        self._folder = folder
        self._environment = {k: os.environ[k] for k in _PASSED_ON if k in os.environ}
        self._environment |= {
            "ZIG_GLOBAL_CACHE_DIR": str(_cache_dir()),
            # Holds nothing worth keeping: the objects of this one library.
            "ZIG_LOCAL_CACHE_DIR": os.environ.get("ZIG_LOCAL_CACHE_DIR", str(folder / ".zig")),
            "LC_ALL": "C",
        }

    def _run(self, arguments: Sequence[str]) -> None:
        done = subprocess.run(
            [self._zig, *arguments],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
        )
        if done.returncode == 0:
            return
        if "NoSpaceLeft" in done.stderr or "No space left" in done.stderr:
            raise DlccError(
                ExitCode.OUTPUT,
                "the disk is full",
                why=f"zig {arguments[0]} could not write its result",
                fix="free space, or set TMPDIR and ZIG_GLOBAL_CACHE_DIR to a larger disk",
            )
        raise DlccError(
            ExitCode.INTERNAL,
            f"zig {arguments[0]} failed with status {done.returncode}",
            why=done.stderr.strip()[-2000:] or "it gave no message",
            fix="this is a fault in dlcc or in the installed ziglang; please report it",
        )

    def compile(self, source: str, output: str, *, include: Path) -> None:
        """Compiles one C or assembly file to a relocatable object."""
        flags = ["-std=c11", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-D_GNU_SOURCE"]
        if self._bare:
            flags = ["-std=c11", "-Os", "-g0", "-ffreestanding", "-fno-unwind-tables"]
        flags += ["-ffile-prefix-map=" + str(self._folder) + "=.", "-Wall", "-Wextra"]
        if source.endswith(".S"):
            flags = []
        paths = ["-I", str(include), "-I", "."]
        self._run(["cc", *self._target, *flags, *paths, "-c", source, "-o", output])

    def compile_zig(self, source: str, output: str) -> None:
        """Compiles one Zig file to a relocatable object for the baseline of the architecture.

        All checks of the language stay in; without those of the stack it needs no library.
        """
        flags = ["-O", "ReleaseSafe", "-fPIC", "-fstrip", "-fsingle-threaded"]
        flags += [
            "-fno-stack-check",
            "-fno-stack-protector",
            "-fno-unwind-tables",
            f"-femit-bin={output}",
        ]
        flags += ["-j1"]  # with more threads, names of constants depend on which is first
        self._run(["build-obj", source, *self._target, *flags])

    def merge(self, objects: Sequence[str], output: str) -> None:
        """Links objects into one relocatable object, without debug sections."""
        if self._macos:
            merged = merge([(self._folder / name).read_bytes() for name in objects])
            (self._folder / output).write_bytes(merged)
            return
        script = _MERGE_SCRIPT % (_UNUSED if self._bare else "")
        (self._folder / "merge.ld").write_text(script)
        self._run(["ld.lld", "-r", "-T", "merge.ld", *objects, "-o", output])

    def archive(self, member: str, output: str) -> None:
        """Makes a static library of one object, with zero dates and owners."""
        self._run(["ar", "rcsD", output, member])

    def link_shared(
        self, objects: Sequence[str], output: str, libraries: Sequence[str] = ()
    ) -> None:
        """Links a shared library; an undefined symbol is an error here, not at run time."""
        flags = ["-shared", "-s", "-O2", f"-Wl,-soname,{output}", "-Wl,-z,defs"]
        flags += ["-Wl,-z,noexecstack", "-lpthread", *libraries]
        if self._macos:
            # nothing of zig's own libraries is needed, which it would first have to build
            flags = ["-shared", "-s", "-nostdlib", "-lSystem"]
            flags.append(f"-Wl,-install_name,@rpath/{output}")
        self._run(["cc", *self._target, *objects, "-o", output, *flags])

    def link_program(
        self, sources: Sequence[str], output: str, libraries: Sequence[str] = ()
    ) -> None:
        """Compiles C files to a program for the baseline of the architecture."""
        flags = ["-std=c11", "-O2", "-g0", "-s", "-D_GNU_SOURCE", "-Wall", "-Wextra"]
        self._run(["cc", *self._target, *flags, *sources, "-o", output, *libraries])

    def link_static(
        self,
        source: str,
        output: str,
        defines: Mapping[str, str],
        include: Path,
        libraries: Sequence[str],
    ) -> None:
        """Compiles a C file to a program without shared libraries; symbols stay in it."""
        flags = ["-static", "-std=c11", "-O2", "-g0", "-D_GNU_SOURCE", "-Wall", "-Wextra"]
        flags += [f"-D{name}={value}" for name, value in defines.items()]
        paths = ["-I", str(include)]
        self._run(["cc", *self._static_target, *flags, *paths, source, *libraries, "-o", output])

    def link_bare(
        self, source: str, output: str, defines: Mapping[str, str], include: Path, library: str
    ) -> None:
        """Makes a program that begins at ``_start`` of a C file and a library, and nothing else."""
        flags = ["-ffreestanding", "-std=c11", "-O2", "-g0", "-Wall", "-Wextra"]
        flags += [f"-D{name}={value}" for name, value in defines.items()]
        made = f"{output}.o"
        self._run(["cc", *self._target, *flags, "-I", str(include), "-c", source, "-o", made])
        self._run(["ld.lld", "-e", "_start", made, library, "-o", output])

    def link_module(self, source: str, output: str, defines: Mapping[str, str]) -> None:
        """Compiles a C file to a shared library that uses symbols of the program that loads it."""
        flags = ["-shared", "-fPIC", "-fvisibility=hidden", "-std=c11", "-O2", "-g0", "-s"]
        flags += [f"-D{name}={value}" for name, value in defines.items()]
        self._run(["cc", *self._target, *flags, "-Wall", "-Wextra", source, "-o", output])


def versions() -> dict[str, str]:
    """The installed compilers that took part in a library."""
    return {name: version(name) for name in ("apache-tvm", "ziglang")}
