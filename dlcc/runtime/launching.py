"""Runs of a network on tensors that are in a GPU's memory."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcc.artifact.check import dtype_of
from dlcc.cuda.driver import DeviceError
from dlcc.errors import DlccError, ExitCode
from dlcc.program import TensorInfo
from dlcc.runtime.binding import Library
from dlcc.runtime.device import Borrowed, DeviceArray, Event, device_of


@dataclass(frozen=True)
class Slot:
    """What an input or output array has to be."""

    info: TensorInfo
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Sequence[TensorInfo]) -> list[Slot]:
        """Those of ``tensors``."""
        return [cls(t, dtype_of(t), t.shape) for t in tensors]


def _refuse(role: str, slot: Slot, why: str, fix: str) -> DlccError:
    where = f"{role} {slot.info.name!r}"
    return DlccError(ExitCode.DATA, "cannot use this tensor", where=where, why=why, fix=fix)


class Launcher:
    """Puts runs of one instance on streams. Calls of it must not overlap.

    Args:
        library: of a network for a GPU.
        inputs: what the inputs have to be, for each shape profile.
        outputs: what the outputs have to be, for each.
    """

    def __init__(
        self, library: Library, inputs: list[list[Slot]], outputs: list[list[Slot]]
    ) -> None:
        self._library = library
        self._inputs, self._outputs = inputs, outputs
        self._under_way: deque[tuple[Event, list[Borrowed]]] = deque()

    def launch(
        self, inputs: Sequence[object], stream: int, out: Sequence[object] | None
    ) -> list[object]:
        """Puts a run on a stream. Returns the outputs, which are there once the stream has done it.

        Raises:
            DlccError: DATA for a tensor that is not what it has to be; else as from the library.
        """
        library = self._library
        try:
            borrowed = self._borrow("input", self._inputs[0], inputs, stream)
            profile = self._profile([tensor.shape for tensor in borrowed])
            slots, taken, made = self._outputs[profile], [], []
            if out is None:
                made = [DeviceArray(s.dtype, s.shape, library.device) for s in slots]
            else:
                taken = self._borrow("output", slots, out, stream)
                self._check_shapes("output", slots, [tensor.shape for tensor in taken])
            places = [
                (ctypes.c_void_p * max(len(tensors), 1))(*(t.address for t in tensors))
                for tensors in (borrowed, taken or made)
            ]
            instance = library.instance(profile)
            status = library.run_device(instance, *places, ctypes.c_void_p(stream))
            if status != 0:
                raise library.failure(status)
            self._keep(borrowed + taken, made, stream)
        except DeviceError as error:
            raise DlccError(
                ExitCode.INTERNAL, "the GPU's driver failed", why=str(error), fix=""
            ) from error
        return list(out) if out is not None else list(made)

    def _borrow(
        self, role: str, slots: Sequence[Slot], values: Sequence[object], stream: int
    ) -> list[Borrowed]:
        here = self._library.device
        if len(values) != len(slots):
            raise DlccError(
                ExitCode.DATA, f"{len(values)} {role}s given, {len(slots)} needed",
                fix=f"the {role}s are {', '.join(s.info.name for s in slots)}",
            )  # fmt: skip
        made = []
        for slot, value in zip(slots, values, strict=True):
            place = device_of(value)
            if place != here:
                found = "in the host's memory" if place is None else f"on GPU {place}"
                raise _refuse(
                    role, slot, f"it is {found}, this instance runs on GPU {here}",
                    f"all tensors of a run have to be on GPU {here}, or all in the host's memory",
                )  # fmt: skip
            try:
                made.append(Borrowed(value, slot.dtype, stream))
            except DeviceError as error:
                fix = f"pass a dense tensor of {slot.dtype.name}"
                raise _refuse(role, slot, str(error), fix) from error
        return made

    def _profile(self, shapes: list[tuple[int, ...]]) -> int:
        """The number of the shape profile that is for these inputs."""
        for number, slots in enumerate(self._inputs):
            if [slot.shape for slot in slots] == shapes:
                return number
        if len(self._inputs) == 1:
            self._check_shapes("input", self._inputs[0], shapes)
        raise DlccError(
            ExitCode.DATA,
            f"no shape profile is for {', '.join(map(str, shapes))}",
            fix="reshape the inputs, or compile with --shape for these too",
        )

    def _check_shapes(
        self, role: str, slots: Sequence[Slot], shapes: list[tuple[int, ...]]
    ) -> None:
        for slot, shape in zip(slots, shapes, strict=True):
            if slot.shape != shape:
                why, fix = f"shape {shape}, {slot.shape} needed", "reshape it"
                raise _refuse(role, slot, why, f"{fix}, or compile with --shape")

    def _keep(self, borrowed: list[Borrowed], made: list[DeviceArray], stream: int) -> None:
        """Tensors of others until the run is done: their owners may free them before."""
        event = Event(self._library.device, stream)
        for array in made:
            array.written_by(event)
        self._under_way.append((event, borrowed))
        while self._under_way and self._under_way[0][0].done:
            self._under_way.popleft()

    def close(self) -> None:
        """Waits for all runs."""
        while self._under_way:
            self._under_way.popleft()[0].wait()
