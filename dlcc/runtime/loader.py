"""Running a compiled network from Python, by exactly the library that a C program would link."""

from __future__ import annotations

import ctypes
import platform
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dlcc.artifact.manifest import Artifact, ShapeProfile
from dlcc.errors import DlccError, ExitCode
from dlcc.program import TensorInfo
from dlcc.runtime.binding import Library, Tensors
from dlcc.runtime.device import device_of
from dlcc.runtime.launching import Launcher, Slot

Array = NDArray[Any]


@dataclass(frozen=True)
class StepTime:
    """Time of one kernel call within one run, in nanoseconds."""

    layer: str
    function: str
    nanoseconds: int


def load(
    folder: str | Path,
    *,
    threads: int = 0,
    pin: bool = False,
    variant: str | None = None,
    device: int | None = None,
) -> Model:
    """Opens the artifact in ``folder`` after checking every file of it.

    Args:
        folder: what ``dlcc compile -o`` made.
        threads: 1 up to what it was compiled for; 0: as many of these as there are CPUs.
        pin: bind each worker thread to a CPU of its own. The calling thread stays as it is.
        variant: the variant of the kernels to run; None: the best that this CPU or GPU can.
        device: for a network on GPUs, which of those that ``CUDA_VISIBLE_DEVICES`` leaves; None:
            the first.

    Raises:
        DlccError: ARTIFACT if a file is missing, truncated, corrupt or of another version; TARGET
            if this CPU lacks a feature, or there is no GPU that it is for; USAGE for a bad
            ``threads``, ``variant`` or ``device``, or if ``pin`` finds fewer CPUs than threads.
    """
    artifact = Artifact.open(folder)
    return Model(artifact, threads=threads, pin=pin, variant=variant, device=device)


def shared_library(artifact: Artifact) -> Path:
    """The artifact's shared library.

    Raises:
        DlccError: ARTIFACT, if it was compiled without one.
    """
    path = artifact.path(".so") or artifact.path(".dylib")
    if path is None:
        raise DlccError(
            ExitCode.ARTIFACT,
            "the artifact has no shared library",
            where=str(artifact.folder),
            why=f"it was compiled with --emit {','.join(artifact.manifest['emit'])}",
            fix="compile it with --emit so",
        )
    return path


def _check_agreement(artifact: Artifact, library: Library) -> None:
    """Hold the manifest against the library: buffers are made by the one, written by the other.

    Raises:
        DlccError: ARTIFACT, where they differ.
    """
    profiles = artifact.shape_profiles
    borders = [(_border(p.inputs), _border(p.outputs)) for p in profiles]
    variants = [
        [(v, [s["layer"] for s in r["steps"]]) for v, r in p.variants.items()] for p in profiles
    ]
    for what, stated, found in (
        ("inputs or outputs", borders, library.borders),
        ("variants or steps", variants, library.variants),
        ("machines", "device" in artifact.manifest, library.on_device),
    ):
        if stated != found:
            raise DlccError(
                ExitCode.ARTIFACT,
                f"the manifest has other {what} than the library",
                where=str(artifact.folder),
                why=f"{stated} instead of {found}",
                fix="compile the model again",
            )


class Model:
    """A compiled network, ready to run.

    A network of several shape profiles runs the one that the shapes of the inputs are for. It takes
    its memory and threads when it runs for the first time; that of the first profile is there from
    the start.

    Calls from several threads are safe and run one after another; for parallel runs load several.
    Close it, or use it as a context manager, to free its memory before the garbage collector does.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int = 0,
        pin: bool = False,
        variant: str | None = None,
        device: int | None = None,
    ) -> None:
        """Opens ``artifact``; see :func:`load`."""
        self.artifact = artifact
        artifact.verify()
        self._lock = threading.Lock()
        self._profiles = artifact.shape_profiles
        self._input_slots = [Slot.of(p.inputs) for p in self._profiles]
        self._output_slots = [Slot.of(p.outputs) for p in self._profiles]
        self._input_pointers = (ctypes.c_void_p * max(len(self._input_slots[0]), 1))()
        self._output_pointers = (ctypes.c_void_p * max(len(self._output_slots[0]), 1))()
        if variant is not None:
            artifact.variant(variant)
        self._library = self._open(threads, variant, device)
        self._launcher = None
        if "device" in artifact.manifest:
            self._launcher = Launcher(self._library, self._input_slots, self._output_slots)
        # Not at exit: a daemon thread may be in a run, and the system frees everything then.
        self._finalizer = weakref.finalize(self, self._library.close)
        self._finalizer.atexit = False
        if pin:
            self._library.pin()

    def _open(self, threads: int, variant: str | None, device: int | None) -> Library:
        artifact = self.artifact
        if device is not None and "device" not in artifact.manifest:
            raise DlccError(
                ExitCode.USAGE,
                f"device is {device}, and the network runs on the CPU",
                where=str(artifact.folder),
                fix="leave device out, or compile with --target cuda",
            )
        where = str(artifact.folder)
        path = shared_library(artifact)
        architecture, *system = artifact.manifest["triple"].split("-")
        here = platform.system() == "Linux" and "linux" in system
        if architecture != platform.machine() or not here:
            raise DlccError(
                ExitCode.ARTIFACT,
                "the library is for another machine",
                where=where,
                why=f"it is for {artifact.manifest['triple']}, this is "
                f"{platform.machine()}-{platform.system().lower()}",
                fix="compile the model for this machine's target",
            )
        fingerprint = int(artifact.manifest["fingerprint"], 16)
        weights = artifact.path(".weights")
        library = Library(path, artifact.symbol, weights, threads, fingerprint, variant, device)
        try:
            _check_agreement(artifact, library)
        except DlccError:
            library.close()
            raise
        return library

    @property
    def name(self) -> str:
        """The network's name, as in the source model."""
        return str(self.artifact.manifest["name"])

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """Names, dtypes and shapes of the inputs (of the first shape profile)."""
        return self.artifact.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Names, dtypes and shapes of the outputs (of the first shape profile)."""
        return self.artifact.outputs

    @property
    def shape_profiles(self) -> tuple[ShapeProfile, ...]:
        """The sets of shapes that the network was compiled for."""
        return self._profiles

    @property
    def threads(self) -> int:
        """Threads a run uses, the caller's included."""
        with self._lock:
            self._check_open()
            return self._library.threads

    @property
    def variant(self) -> str:
        """Name of the variant of the kernels that runs."""
        with self._lock:
            self._check_open()
            return self._library.variant

    @property
    def device(self) -> int | None:
        """Number of the GPU that runs it; None: the CPU does."""
        return None if self._launcher is None else self._library.device

    def __repr__(self) -> str:
        state = "" if self._finalizer.alive else ", closed"
        return f"<dlcc model {self.name!r}, {self.artifact.folder}{state}>"

    def __call__(self, *arrays: object, out: Any = None, **named: object) -> Any:
        """Runs the network; their shapes tell which shape profile.

        Args:
            *arrays: the inputs in order: numpy arrays or anything with DLPack in CPU memory. For a
                network on a GPU also tensors in its memory: see :meth:`launch`, which is called
                with the default stream.
            out: arrays to fill instead of new ones: C-contiguous, one per output.
            **named: inputs by name, instead of or after ``arrays``.

        Returns:
            The output, or a tuple of them where the network has several.

        Raises:
            DlccError: DATA if an input or ``out`` does not fit, with the numbers.
        """
        inputs = self._gather(arrays, named) if named else arrays
        if self._launcher is not None and any(device_of(x) is not None for x in inputs):
            return self.launch(*inputs, out=out)
        profile, given = self._inputs(inputs)
        results = self._run(profile, given, self._results(profile, out))
        return results[0] if len(results) == 1 else tuple(results)

    def launch(self, *tensors: object, stream: int = 0, out: Any = None) -> Any:
        """Puts a run on a stream of the GPU, and does not wait for it. Nothing is copied.

        Args:
            *tensors: the inputs in order: objects with DLPack in the memory of the instance's GPU,
                stored densely (torch: ``x.contiguous()``).
            stream: handle of the stream (torch: ``torch.cuda.current_stream().cuda_stream``); 0:
                the legacy default stream. Producers of the tensors make it wait for their work.
            out: such tensors to fill instead of new ones, one per output. They spare an allocation
                and a release in every run, for which the driver waits.

        Returns:
            The output, or a tuple of them where the network has several: ``out``, or
            :class:`~dlcc.runtime.device.DeviceArray`, which has DLPack and ``numpy()``.

        Raises:
            DlccError: DATA if a tensor does not fit; USAGE for a network on the CPU.
        """
        launcher = self._launcher
        if launcher is None:
            raise DlccError(
                ExitCode.USAGE,
                "the network runs on the CPU",
                where=self.name,
                fix="call the model, or compile with --target cuda",
            )
        given = out if out is None or isinstance(out, list | tuple) else [out]
        with self._lock:
            self._check_open()
            results = launcher.launch(tensors, stream, given)
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, inputs: Mapping[str, object]) -> dict[str, Array]:
        """Runs the network on inputs by name; returns the outputs by name."""
        profile, given = self._inputs(self._gather((), inputs))
        results = self._run(profile, given, self._results(profile, None))
        slots = self._output_slots[profile]
        return {slot.info.name: r for slot, r in zip(slots, results, strict=True)}

    def profile(self, *arrays: object, **named: object) -> list[StepTime]:
        """Runs the network once and returns what each step took, in order."""
        profile, given = self._inputs(self._gather(arrays, named))
        steps = self.artifact.variant(self.variant, profile)["steps"]
        times = (ctypes.c_uint64 * max(len(steps), 1))()
        self._run(profile, given, self._results(profile, None), times)
        return [StepTime(s["layer"], s["function"], t) for s, t in zip(steps, times, strict=False)]

    def close(self) -> None:
        """Frees the instance; waits for a run in another thread. May be called again."""
        with self._lock:
            if self._launcher is not None and self._finalizer.alive:
                self._launcher.close()
            self._finalizer()

    def __enter__(self) -> Model:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise ValueError(f"the model {self.name!r} is closed")

    def _gather(self, arrays: Sequence[object], named: Mapping[str, object]) -> list[object]:
        """Inputs in order, from leading positional ones and others by name."""
        names = [slot.info.name for slot in self._input_slots[0]]
        rest = names[len(arrays) :]
        unknown = sorted(set(named) - set(rest))
        if unknown:
            raise self._data_error(
                f"unknown or repeated input {', '.join(map(repr, unknown))}",
                f"the inputs are {', '.join(map(repr, names)) or 'none'}",
            )
        missing = [name for name in rest if name not in named]
        if missing:
            raise self._data_error(
                f"input {', '.join(map(repr, missing))} is missing",
                f"the inputs are {', '.join(map(repr, names))}",
            )
        return [*arrays, *(named[name] for name in rest)]

    def _data_error(self, what: str, why: str, where: str = "", fix: str = "") -> DlccError:
        return DlccError(ExitCode.DATA, what, where=where or self.name, why=why, fix=fix)

    def _inputs(self, inputs: Sequence[object]) -> tuple[int, list[Array]]:
        """The number of the shape profile that runs on ``inputs``, and their arrays."""
        slots = self._input_slots[0]
        if len(inputs) != len(slots):
            names = ", ".join(repr(s.info.name) for s in slots) or "none"
            raise self._data_error(
                f"{len(inputs)} inputs given, {len(slots)} needed", f"the inputs are {names}"
            )
        arrays = [self._input(slot, x) for slot, x in zip(slots, inputs, strict=True)]
        shapes = [array.shape for array in arrays]
        for number, profile in enumerate(self._input_slots):
            if [slot.shape for slot in profile] == shapes:
                return number, arrays
        if len(self._profiles) == 1:
            slot, shape = next((s, x) for s, x in zip(slots, shapes, strict=True) if s.shape != x)
            raise self._data_error(
                f"shape {shape}, {slot.shape} needed",
                "a compiled network has fixed shapes",
                where=f"input {slot.info.name!r}",
                fix="reshape the input, or compile with --shape",
            )
        given = ", ".join(f"{s.info.name}{list(x)}" for s, x in zip(slots, shapes, strict=True))
        raise self._data_error(
            f"no shape profile is for {given}",
            "the network was compiled for " + "; ".join(map(str, self._profiles)),
            fix="reshape the inputs, or compile with --shape for these too",
        )

    def _run(
        self,
        profile: int,
        arrays: list[Array],
        results: list[Array],
        times: ctypes.Array[ctypes.c_uint64] | None = None,
    ) -> list[Array]:
        with self._lock:
            self._check_open()
            for index, array in enumerate(arrays):
                self._input_pointers[index] = array.__array_interface__["data"][0]
            for index, array in enumerate(results):
                self._output_pointers[index] = array.__array_interface__["data"][0]
            library = self._library
            instance = library.instance(profile)
            places = (instance, self._input_pointers, self._output_pointers)
            status = library.run(*places) if times is None else library.profile(*places, times)
            if status != 0:
                raise library.failure(status)
        return results

    def _input(self, slot: Slot, value: object) -> Array:
        if isinstance(value, np.generic):
            value = np.asarray(value)
        array = value if isinstance(value, np.ndarray) else self._from_dlpack(slot, value)
        if array.dtype != slot.dtype:
            raise self._data_error(
                f"dtype {array.dtype}, {slot.info.dtype} needed",
                "dlcc converts no input silently",
                where=f"input {slot.info.name!r}",
                fix=f"pass x.astype({slot.info.dtype!r})",
            )
        if array.flags.c_contiguous and array.flags.aligned:
            return array
        return np.require(array, requirements=("C", "A"))

    def _from_dlpack(self, slot: Slot, value: object) -> Array:
        where = f"input {slot.info.name!r}"
        if not hasattr(value, "__dlpack__"):
            raise self._data_error(
                f"cannot use a {type(value).__name__}",
                "it is neither a numpy array nor does it offer DLPack",
                where=where,
                fix="pass numpy.asarray(x, dtype)",
            )
        try:
            return cast(Array, np.from_dlpack(cast(Any, value)))
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise self._data_error(
                f"cannot use this {type(value).__name__}",
                str(error).splitlines()[0] if str(error) else type(error).__name__,
                where=where,
                fix="pass a detached tensor in CPU memory",
            ) from error

    def _results(self, profile: int, out: Array | Sequence[Array] | None) -> list[Array]:
        slots = self._output_slots[profile]
        if out is None:
            return [np.empty(slot.shape, slot.dtype) for slot in slots]
        given = [out] if isinstance(out, np.ndarray) else list(out)
        if len(given) != len(slots):
            raise self._data_error(f"{len(given)} arrays in out", f"{len(slots)} are needed")
        for slot, array in zip(slots, given, strict=True):
            self._check_out(slot, array)
        return given

    def _check_out(self, slot: Slot, array: Array) -> None:
        if not isinstance(array, np.ndarray):
            reason = f"it is a {type(array).__name__}, not a numpy array"
        elif array.dtype != slot.dtype or array.shape != slot.shape:
            reason = f"it is {array.dtype}{list(array.shape)}"
        elif not (array.flags.c_contiguous and array.flags.aligned and array.flags.writeable):
            reason = "it is not C-contiguous, aligned and writable"
        else:
            return
        raise self._data_error(
            "cannot write the result into out",
            reason,
            where=f"output {slot.info.name!r}",
            fix=f"pass numpy.empty({slot.shape}, {slot.info.dtype!r})",
        )


def _border(tensors: Sequence[TensorInfo]) -> Tensors:
    """What a library has to say of ``tensors``."""
    return [(t.name, t.dtype, t.shape) for t in tensors]
