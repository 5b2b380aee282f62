"""CUDA C++ to machine code for one architecture, by NVRTC from its Python package.

Nothing else of the CUDA toolkit is needed, and no GPU. Version 12 is pinned: its cubins load under
every driver for CUDA 12 and later, and it still compiles for architectures before sm_75.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from dlcc.errors import DlccError, ExitCode

PACKAGE = "nvidia-cuda-nvrtc-cu12"
_LIBRARY = "libnvrtc.so.12"
_OPTIONS = (
    "--std=c++17",
    "--fmad=false",  # each operation rounds by itself; kernels that may fuse say so
    "--device-as-default-execution-space",
    "--extra-device-vectorization",
    "--restrict",
    "--disable-warnings",  # about what is not used; an error's text is short without them
)


@cache
def _library() -> ctypes.CDLL:
    """NVRTC.

    Raises:
        DlccError: TARGET, its package is not installed.
    """
    spec = None
    with suppress(ModuleNotFoundError):  # no package of NVIDIA's at all
        spec = find_spec("nvidia.cuda_nvrtc")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [path for p in places if (path := Path(p) / "lib" / _LIBRARY).is_file()]
    if not found:
        raise DlccError(
            ExitCode.TARGET,
            "there is no CUDA compiler",
            where="--target cuda",
            why=f"the Python package {PACKAGE} is not installed",
            fix="pip install 'dlcc[cuda]'; no CUDA toolkit is needed",
        )
    library = ctypes.CDLL(str(found[0]))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def version() -> str:
    """NVRTC's version, as ``12.9``."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "")
    return f"{major.value}.{minor.value}"


def architectures() -> tuple[str, ...]:
    """What can be compiled for, as ``sm_80``, ascending."""
    count = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(count)), "")
    numbers = (ctypes.c_int * count.value)()
    _check(_library().nvrtcGetSupportedArchs(numbers), "")
    return tuple(f"sm_{number}" for number in numbers)


def compile_cubin(source: str, architecture: str) -> bytes:
    """The cubin of ``source`` for ``architecture`` (``sm_80``); equal arguments give equal bytes.

    Raises:
        DlccError: TARGET, there is no compiler; INTERNAL, it refuses the source.
    """
    return compile_logged(source, architecture)[0]


def compile_logged(source: str, architecture: str) -> tuple[bytes, str]:
    """The same, and what the compiler and the assembler behind it remark.

    Raises:
        DlccError: as :func:`compile_cubin`.
    """
    library = _library()
    program = ctypes.c_void_p()
    made = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
    )
    _check(made, "")
    try:
        options = [f"--gpu-architecture={architecture}", *_OPTIONS]
        texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCompileProgram(program, len(options), texts)
        _check(status, _log(program) if status else "")
        size = ctypes.c_size_t()
        _check(library.nvrtcGetCUBINSize(program, ctypes.byref(size)), "")
        cubin = ctypes.create_string_buffer(size.value)
        _check(library.nvrtcGetCUBIN(program, cubin), "")
        return cubin.raw, _log(program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _log(program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    if _library().nvrtcGetProgramLogSize(program, ctypes.byref(size)):
        return ""
    text = ctypes.create_string_buffer(size.value)
    _library().nvrtcGetProgramLog(program, text)
    return text.value.decode(errors="replace")


def _check(status: int, log: str) -> None:
    if status:
        reason = _library().nvrtcGetErrorString(status).decode()
        raise DlccError(
            ExitCode.INTERNAL,
            "the CUDA compiler fails",
            why=f"{reason}\n{log}".strip(),
            fix="this is a fault in a kernel; please report it",
        )
