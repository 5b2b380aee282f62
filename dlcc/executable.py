"""One way to run a network, whatever it is: an artifact by its library, a model by the reference.

:func:`open_executable` takes the path a user gave. The numpy reference is exact but slow; it is
what a compiled network is judged by.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dlcc.data import LABEL_KEYS, named_inputs, split_batches
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends import ShapeOptions, load_graph
from dlcc.ir import F32, Affine, DType, Graph, TensorType
from dlcc.ir.encodings import Array
from dlcc.program import TensorInfo

if TYPE_CHECKING:
    from dlcc.remote.board import Board
    from dlcc.runtime.loader import Model

Feed = dict[str, Array]


class Executable(ABC):
    """A network that can run.

    Attributes:
        kind: "artifact" or "model", for messages.
        path: what the user gave.
        inputs: names, dtypes (as stored: codes where quantised) and shapes of the inputs.
        outputs: the same of the outputs.
    """

    kind = ""

    def __init__(
        self, path: Path, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]
    ) -> None:
        self.path = path
        self.inputs = inputs
        self.outputs = outputs

    @abstractmethod
    def run(self, feed: Mapping[str, Array]) -> Feed:
        """Outputs by name, from arrays of exactly the inputs' shapes and dtypes.

        Raises:
            DlccError: DATA, if an array does not fit.
        """

    def close(self) -> None:
        """Free what the network holds."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def shape_profiles(self) -> tuple[tuple[TensorInfo, ...], ...]:
        """The inputs of each shape profile."""
        return (self.inputs,)

    def signature(self, arrays: Mapping[str, Array] | None = None) -> Graph:
        """A graph with the inputs alone: what :mod:`dlcc.data` checks arrays against.

        Args:
            arrays: one array for each input. Of several shape profiles it is the first one whose
                shapes they have, else the first that they are samples for; without them the first.
        """
        graph = Graph(self.path.stem)
        for info in self.inputs if arrays is None else _fitting(self.shape_profiles, arrays):
            graph.add_input(info.name, _type(info))
        return graph


def _fitting(
    profiles: tuple[tuple[TensorInfo, ...], ...], arrays: Mapping[str, Array]
) -> tuple[TensorInfo, ...]:
    for fits in (tuple.__eq__, _are_samples):
        for inputs in profiles:
            if all(fits(arrays[info.name].shape, info.shape) for info in inputs):
                return inputs
    return profiles[0]


def _are_samples(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an array holds whole batches, along the first axis or a further one before it."""
    if given[1:] == wanted:
        return True
    batches = wanted and given and wanted[0] and not given[0] % wanted[0]
    return bool(batches) and given[1:] == wanted[1:]


def _type(info: TensorInfo) -> TensorType:
    """Codes where the numbers have a scale."""
    from dlcc.artifact.check import dtype_of

    dtype = dtype_of(info)
    if info.scale is None:
        return TensorType(info.shape, DType.of(dtype))
    codes = Affine(8 * dtype.itemsize, dtype.kind == "i", (info.scale,), (info.zero_point,))
    return TensorType(info.shape, F32, codes)


class ProfiledNetwork(Executable):
    """A network whose steps have times of their own."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """Threads of a run."""

    @property
    @abstractmethod
    def variant(self) -> str:
        """Name of the variant of the kernels that runs."""

    @abstractmethod
    def profile(
        self, feed: Mapping[str, Array], *, least_seconds: float, least_runs: int, most_runs: int
    ) -> list[list[int]]:
        """Nanoseconds of each step of each run, after a run that does not count.

        There are runs until both the time and their number are reached, or ``most_runs`` are.
        """


class CompiledNetwork(ProfiledNetwork):
    """An artifact, run by its own library."""

    kind = "artifact"

    def __init__(self, path: Path, threads: int = 0, variant: str | None = None) -> None:
        from dlcc.runtime.loader import load

        self.model: Model = load(path, threads=threads, variant=variant)
        super().__init__(path, self.model.inputs, self.model.outputs)

    @property
    def shape_profiles(self) -> tuple[tuple[TensorInfo, ...], ...]:
        """See :attr:`Executable.shape_profiles`."""
        return tuple(profile.inputs for profile in self.model.shape_profiles)

    def run(self, feed: Mapping[str, Array]) -> Feed:
        """See :meth:`Executable.run`."""
        return self.model.run(feed)

    @property
    def threads(self) -> int:
        """See :attr:`ProfiledNetwork.threads`."""
        return self.model.threads

    @property
    def variant(self) -> str:
        """See :attr:`ProfiledNetwork.variant`."""
        return self.model.variant

    def profile(
        self, feed: Mapping[str, Array], *, least_seconds: float, least_runs: int, most_runs: int
    ) -> list[list[int]]:
        """See :meth:`ProfiledNetwork.profile`."""
        arrays = [feed[info.name] for info in self.inputs]
        self.model(*arrays)
        runs: list[list[int]] = []
        end = time.perf_counter() + least_seconds
        while len(runs) < most_runs and (len(runs) < least_runs or time.perf_counter() < end):
            runs.append([step.nanoseconds for step in self.model.profile(*arrays)])
        return runs

    def close(self) -> None:
        """Free the instance."""
        self.model.close()


class ReferenceNetwork(Executable):
    """A model, run by the numpy reference."""

    kind = "model"

    def __init__(self, path: Path, graph: Graph) -> None:
        self.graph = graph
        super().__init__(
            path,
            tuple(
                TensorInfo(v.name, str(v.type.storage.numpy), v.type.shape) for v in graph.inputs
            ),
            tuple(
                TensorInfo(name, str(v.type.storage.numpy), v.type.shape)
                for name, v in zip(graph.output_names, graph.outputs, strict=True)
            ),
        )

    def run(self, feed: Mapping[str, Array]) -> Feed:
        """See :meth:`Executable.run`."""
        from dlcc.analysis.execute import execute

        return execute(self.graph, feed)


def open_executable(
    path: str | Path,
    *,
    shapes: ShapeOptions | None = None,
    constants: Mapping[str, Any] | None = None,
    threads: int = 0,
    board: Board | None = None,
) -> Executable:
    """The network at ``path``: an artifact folder, or an .onnx or .dlir file.

    An artifact runs on ``board``, if one is given.

    Raises:
        DlccError: there is nothing usable, or an artifact is given ``shapes`` or ``constants``.
    """
    place = Path(path)
    if not place.is_dir():
        if board is not None:
            raise DlccError(
                ExitCode.USAGE,
                "only an artifact runs on a board",
                where=str(place),
                why="it is no folder; models are run by the numpy reference, which is here",
                fix="compile the model for the board's target, or leave --remote out",
            )
        return ReferenceNetwork(place, load_graph(place, shapes=shapes, constants=constants))
    for option, given in (("shape", shapes), ("constant", constants)):
        if given:
            raise DlccError(
                ExitCode.USAGE,
                f"{option}s cannot be set for an artifact",
                where=str(place),
                why=f"its {option}s were fixed when it was compiled",
                fix=f"leave --{option} out, or compile the model with it",
            )
    return open_compiled(place, threads, board)


def open_compiled(
    path: Path, threads: int = 0, board: Board | None = None, variant: str | None = None
) -> ProfiledNetwork:
    """The artifact in ``path``, here or on ``board``.

    Args:
        path: the artifact's folder.
        threads: threads of a run; 0: as many as there are CPUs.
        board: None for this machine.
        variant: the variant of the kernels to run; None: the best that the CPU can.

    Raises:
        DlccError: it cannot be used there.
    """
    if board is None:
        return CompiledNetwork(path, threads, variant)
    if variant is not None:
        raise DlccError(
            ExitCode.USAGE,
            "the variant that runs on a board cannot be chosen",
            where="--variant",
            why="the library takes the best that the board's CPU runs",
            fix=f"compile for {variant} alone",
        )
    from dlcc.remote.network import RemoteNetwork

    return RemoteNetwork(board, path, threads)


def feeds_of(
    arrays: Mapping[str, Array], network: Executable, where: str, *, convert: bool = False
) -> Iterator[Feed]:
    """Batches of the network's own size, cut from arrays of one or many samples.

    Args:
        arrays: by input name; a network with one input takes the only array under any name.
        network: which has the inputs.
        where: the file, for messages.
        convert: convert dtypes; else another dtype is refused.

    Raises:
        DlccError: DATA, if an array is missing or does not fit.
    """
    named = named_inputs(arrays, network.signature(), where)
    signature = network.signature(named)
    for value in signature.inputs:
        array, expected = named[value.name], value.type.storage.numpy
        if not convert and array.dtype != expected:
            raise DlccError(
                ExitCode.DATA,
                f"input {value.name!r} has the wrong dtype",
                where=where,
                why=f"it is {array.dtype}, the network takes {expected}",
                fix=f"write the file with {value.name}=x.astype({str(expected)!r})",
            )
        batch = value.type.shape[0] if value.type.rank else 1
        if array.ndim == value.type.rank and batch and array.ndim and array.shape[0] % batch:
            raise DlccError(
                ExitCode.DATA,
                f"the samples of input {value.name!r} do not fill whole batches",
                where=where,
                why=f"{array.shape[0]} samples, the network takes {batch} at a time",
                fix=f"give a multiple of {batch} samples, or import the model with another --shape",
            )
    return split_batches(named, signature, where)()


def run_samples(
    network: Executable, arrays: Mapping[str, Array], where: str, *, convert: bool = False
) -> Feed:
    """Run all samples of ``arrays``; outputs are joined the way the inputs were.

    Samples along an input's own first axis give outputs joined along theirs; samples on an extra
    leading axis give outputs with one, and so do outputs without axes.

    Raises:
        DlccError: DATA, if an array does not fit.
    """
    feeds = feeds_of(arrays, network, where, convert=convert)
    results = [network.run(feed) for feed in feeds]
    if len(results) == 1 and not _has_sample_axis(network, arrays):
        return results[0]
    extra = _has_sample_axis(network, arrays)
    join = {
        info.name: np.stack if extra or not info.shape else np.concatenate
        for info in network.outputs
    }
    return {name: join[name]([r[name] for r in results]) for name in results[0]}


def _has_sample_axis(network: Executable, arrays: Mapping[str, Array]) -> bool:
    named = named_inputs(arrays, network.signature(), "")
    return any(named[info.name].ndim > len(info.shape) for info in network.inputs)


def random_feed(inputs: tuple[TensorInfo, ...], seed: int = 0) -> Feed:
    """One random feed: normal floats, any bytes, other integers from 0 to 3, coin flips."""
    from dlcc.artifact.check import dtype_of

    rng = np.random.default_rng(seed)
    feed: Feed = {}
    for info in inputs:
        dtype = dtype_of(info)
        if dtype.kind == "b":
            feed[info.name] = rng.integers(0, 2, info.shape).astype(dtype)
        elif dtype.kind in "iu" and dtype.itemsize == 1:
            limits = np.iinfo(dtype)
            feed[info.name] = rng.integers(limits.min, limits.max + 1, info.shape).astype(dtype)
        elif dtype.kind in "iu":  # most often indices: small ones are valid
            feed[info.name] = rng.integers(0, 4, info.shape).astype(dtype)
        else:
            feed[info.name] = rng.standard_normal(info.shape).astype(dtype)
    return feed


__all__ = [
    "LABEL_KEYS",
    "CompiledNetwork",
    "Executable",
    "Feed",
    "ProfiledNetwork",
    "ReferenceNetwork",
    "feeds_of",
    "open_compiled",
    "open_executable",
    "random_feed",
    "run_samples",
]
