"""ctypes view of a compiled library: the structures and functions of ``runtime/c/api.h.in``."""

from __future__ import annotations

import _ctypes
import ctypes
import os
from itertools import count
from pathlib import Path
from typing import Final

from dlcc.artifact.manifest import ABI
from dlcc.errors import DlccError, ExitCode

_STATUS: Final = {
    1: (ExitCode.DATA, "the call was refused"),
    2: (ExitCode.INTERNAL, "out of memory"),
    3: (ExitCode.ARTIFACT, "the weights cannot be used"),
    4: (ExitCode.TARGET, "this CPU cannot run the library"),
    5: (ExitCode.INTERNAL, "the threads cannot be started"),
    6: (ExitCode.INTERNAL, "a kernel failed"),
    7: (ExitCode.TARGET, "no GPU can run the library"),
}


_OPENED = count()


def _unused_name(descriptor: int) -> str:
    """A path to an open file that was never given before in this process.

    Numbers of descriptors are used again, also while a library that was loaded under one is still
    there because somebody else loaded it too.
    """
    number = f"{next(_OPENED):b}"
    return f"/proc/self{''.join('//' if bit == '1' else '/./' for bit in number)}fd/{descriptor}"


def status_error(status: int, text: str, where: str) -> DlccError:
    """The error that a library's ``status`` and the ``text`` of its ``<name>_error`` tell of."""
    why, marker, rest = text.partition("; compile with ")
    fix = marker[2:] + rest
    code, what = _STATUS.get(status, (ExitCode.INTERNAL, f"status {status}"))
    if why.startswith(("threads is ", "device is ", "cannot pin ")):
        code = ExitCode.USAGE
    if code == ExitCode.ARTIFACT and not fix:
        fix = "compile the model again"
    return DlccError(code, what, where=where, why=why, fix=fix)


class TensorStruct(ctypes.Structure):
    """``<name>_tensor_t``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("rank", ctypes.c_uint32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("bytes", ctypes.c_uint64),
        ("alignment", ctypes.c_uint32),
    )


class VariantStruct(ctypes.Structure):
    """``<name>_variant_t``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("step_count", ctypes.c_uint32),
        ("features", ctypes.POINTER(ctypes.c_char_p)),
        ("steps", ctypes.POINTER(ctypes.c_char_p)),
    )


class ProfileStruct(ctypes.Structure):
    """``<name>_shape_profile_t``."""

    _fields_ = (
        ("step_count", ctypes.c_uint32),
        ("arena_bytes", ctypes.c_uint64),
        ("inputs", ctypes.POINTER(TensorStruct)),
        ("outputs", ctypes.POINTER(TensorStruct)),
        ("variants", ctypes.POINTER(VariantStruct)),
    )


class InfoStruct(ctypes.Structure):
    """``<name>_info_t``."""

    _fields_ = (
        ("abi", ctypes.c_uint32),
        ("input_count", ctypes.c_uint32),
        ("output_count", ctypes.c_uint32),
        ("step_count", ctypes.c_uint32),
        ("max_threads", ctypes.c_uint32),
        ("weights_embedded", ctypes.c_uint32),
        ("arena_bytes", ctypes.c_uint64),
        ("weights_bytes", ctypes.c_uint64),
        ("fingerprint", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("compiler", ctypes.c_char_p),
        ("triple", ctypes.c_char_p),
        ("weights_file", ctypes.c_char_p),
        ("inputs", ctypes.POINTER(TensorStruct)),
        ("outputs", ctypes.POINTER(TensorStruct)),
        ("features", ctypes.POINTER(ctypes.c_char_p)),
        ("steps", ctypes.POINTER(ctypes.c_char_p)),
        ("variant_count", ctypes.c_uint32),
        ("variants", ctypes.POINTER(VariantStruct)),
        ("shape_profile_count", ctypes.c_uint32),
        ("shape_profiles", ctypes.POINTER(ProfileStruct)),
    )


Tensors = list[tuple[str, str, tuple[int, ...]]]
"""Name, dtype and shape of each."""

Border = tuple[Tensors, Tensors]
"""Inputs and outputs."""

Variant = tuple[str, list[str]]
"""Its name, and the layers of its steps."""


def _tensor(tensor: TensorStruct) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name.decode(), tensor.dtype.decode(), tuple(tensor.shape[: tensor.rank])


class Library:
    """One loaded shared library, and an instance of its network for each shape profile that runs.

    Args:
        path: the ``.so`` file.
        symbol: the C name of the network.
        weights: the weights file; None where they are embedded.
        threads: as for ``<name>_create``.
        fingerprint: what the manifest says the library is.
        variant: name of the variant to run; None: the best that the machine can.
        device: number of the GPU, for a library that runs on one; None: the first.

    Raises:
        DlccError: ARTIFACT for a library or weights that cannot be used, TARGET for a CPU that
            lacks a feature, USAGE for a bad thread count, INTERNAL if the system lacks resources.
    """

    def __init__(
        self,
        path: Path,
        symbol: str,
        weights: Path | None,
        threads: int,
        fingerprint: int,
        variant: str | None = None,
        device: int | None = None,
    ) -> None:
        self._where = str(path)
        self._instances: dict[int, ctypes.c_void_p] = {}
        self._options = (None if weights is None else os.fsencode(weights), threads, variant)
        self._pinned = False
        self._chosen = device or 0
        self._handle = self._open(path)
        try:
            self._bind(symbol)
            self._check_info(fingerprint)
            self.instance(0)
        except BaseException:
            _ctypes.dlclose(self._handle)
            raise

    def _open(self, path: Path) -> int:
        """Loads the file under a name of its own, which refers to its descriptor: glibc takes a
        name that it has already loaded for the same library, and a path may hold another file now.
        """
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._broken(error.strerror or str(error)) from None
        alias = _unused_name(self._descriptor)
        try:
            self._lib = ctypes.CDLL(alias if os.path.exists(alias) else str(path))
        except OSError as error:
            os.close(self._descriptor)
            raise self._broken(str(error).replace(alias, path.name)) from None
        return int(self._lib._handle)

    def _broken(self, why: str) -> DlccError:
        return DlccError(
            ExitCode.ARTIFACT,
            "the library cannot be loaded",
            where=self._where,
            why=why,
            fix="compile the model again",
        )

    def _bind(self, symbol: str) -> None:
        pointer, pointers = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
        try:
            self._info = self._lib[f"{symbol}_info"]
            self._error = self._lib[f"{symbol}_error"]
            self._create = self._lib[f"{symbol}_create_shape_profile"]
            self.run = self._lib[f"{symbol}_run"]
            self.profile = self._lib[f"{symbol}_profile"]
            self._threads = self._lib[f"{symbol}_threads"]
            self._variant = self._lib[f"{symbol}_variant"]
            self._pin = self._lib[f"{symbol}_pin"]
            self._destroy = self._lib[f"{symbol}_destroy"]
        except AttributeError as error:
            raise self._broken(str(error)) from None
        self._info.restype = ctypes.POINTER(InfoStruct)
        self._error.restype = ctypes.c_char_p
        text, place = ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)
        number, size = ctypes.c_uint32, ctypes.c_size_t
        create = (text, ctypes.c_int, number, text, pointer, size, place)
        self._create.argtypes = create
        self._create_on = getattr(self._lib, f"{symbol}_create_on", None)
        if self._create_on is not None:  # a library for GPUs
            self._create_on.argtypes = create
            self.run_device = self._lib[f"{symbol}_run_device"]
            self.run_device.argtypes = (pointer, pointers, pointers, pointer)
        self.run.argtypes = (pointer, pointers, pointers)
        self.profile.argtypes = (pointer, pointers, pointers, ctypes.POINTER(ctypes.c_uint64))
        self._threads.argtypes = (pointer,)
        self._variant.argtypes = (pointer,)
        self._variant.restype = ctypes.POINTER(VariantStruct)
        self._pin.argtypes = (pointer, ctypes.POINTER(ctypes.c_int))
        self._destroy.argtypes = (pointer,)
        self._destroy.restype = None

    def _check_info(self, fingerprint: int) -> None:
        info = self._info().contents
        if info.abi != ABI:
            raise self._broken(f"its interface has number {info.abi}, this dlcc speaks {ABI}")
        if info.fingerprint != fingerprint:
            raise self._broken("it is of another network or compilation than the manifest")

    @property
    def borders(self) -> list[Border]:
        """Names, dtypes and shapes of the inputs and the outputs of each shape profile, as the
        library has them.
        """
        info = self._info().contents
        return [
            (
                [_tensor(t) for t in profile.inputs[: info.input_count]],
                [_tensor(t) for t in profile.outputs[: info.output_count]],
            )
            for profile in info.shape_profiles[: info.shape_profile_count]
        ]

    @property
    def variants(self) -> list[list[Variant]]:
        """Name and layers of the steps of each variant of each shape profile, as the library has
        them.
        """
        info = self._info().contents
        return [
            [
                (v.name.decode(), [layer.decode() for layer in v.steps[: v.step_count]])
                for v in profile.variants[: info.variant_count]
            ]
            for profile in info.shape_profiles[: info.shape_profile_count]
        ]

    def instance(self, profile: int) -> ctypes.c_void_p:
        """The instance for a shape profile, first argument of ``run`` and ``profile``.

        It is made when it is asked for the first time; not for calls from several threads at once.

        Raises:
            DlccError: the weights cannot be used, or the system lacks resources.
        """
        if profile not in self._instances:
            weights, threads, variant = self._options
            made = ctypes.c_void_p()
            name = None if variant is None else variant.encode()
            rest = (profile, name, None, 0, ctypes.byref(made))
            if self._create_on is None or threads > 1:  # which GPUs refuse
                status = self._create(weights, threads, *rest)
            else:
                status = self._create_on(weights, self._chosen, *rest)
            if status != 0:
                raise self.failure(status)
            self._instances[profile] = made
            if self._pinned:
                self._pin_one(made)
        return self._instances[profile]

    @property
    def threads(self) -> int:
        """Threads of an instance."""
        return int(self._threads(self._instances[0]))

    @property
    def variant(self) -> str:
        """Name of the variant that every instance runs."""
        return str(self._variant(self._instances[0]).contents.name.decode())

    @property
    def on_device(self) -> bool:
        """Whether it is a library for GPUs."""
        return self._create_on is not None

    @property
    def device(self) -> int:
        """Number of the GPU that instances run on, of a library for GPUs."""
        return self._chosen

    def pin(self) -> None:
        """Pins each worker thread of an instance to a CPU of its own.

        Raises:
            DlccError: USAGE if there are fewer CPUs than threads.
        """
        self._pinned = True
        for instance in self._instances.values():
            self._pin_one(instance)

    def _pin_one(self, instance: ctypes.c_void_p) -> None:
        status = self._pin(instance, None)
        if status != 0:
            raise self.failure(status)

    def failure(self, status: int) -> DlccError:
        """The error of this thread's last call, which returned ``status``."""
        text = (self._error() or b"").decode("utf-8", "replace")
        return status_error(status, text, self._where)

    def close(self) -> None:
        """Destroys the instances and unloads the library. Once only; no call may be under way."""
        while self._instances:
            self._destroy(self._instances.popitem()[1])
        _ctypes.dlclose(self._handle)
        os.close(self._descriptor)
