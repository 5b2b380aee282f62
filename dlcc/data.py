"""Sample data: calibration and evaluation arrays from .npz files, checked against a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from dlcc.archives import UNREADABLE, read_arrays
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import F32, Affine, Graph, TensorType
from dlcc.ir.encodings import Array
from dlcc.ops.integer import quantise_real

Batches = Callable[[], Iterator[dict[str, Array]]]
"""Starts a new pass over the data; each batch has one array per network input, ready to execute."""

LABEL_KEYS = ("labels", "label", "y", "targets")


def load_npz(path: Path) -> dict[str, Array]:
    """Read all arrays of an .npz file.

    Raises:
        DlccError: it is missing, not an .npz, or holds pickled objects.
    """
    try:
        return read_arrays(path, bounded=False)
    except FileNotFoundError:
        raise DlccError(
            ExitCode.DATA, "no such data file", where=str(path), fix="check the path"
        ) from None
    except UNREADABLE as error:
        raise DlccError(
            ExitCode.DATA,
            "cannot read the data file",
            where=str(path),
            why=str(error).splitlines()[0],
            fix="write it with numpy.savez(file, INPUT_NAME=array)",
        ) from None


def named_inputs(arrays: Mapping[str, Array], graph: Graph, where: str) -> dict[str, Array]:
    """Arrays by input name; a network with one input takes a file's only array by any name.

    Raises:
        DlccError: an input has no array.
    """
    names = [v.name for v in graph.inputs]
    rest = {k: a for k, a in arrays.items() if k not in LABEL_KEYS or k in names}
    if len(names) == 1 and len(rest) == 1 and names[0] not in rest:
        return {names[0]: next(iter(rest.values()))}
    missing = [n for n in names if n not in rest]
    if missing:
        raise DlccError(
            ExitCode.DATA,
            f"no data for input {', '.join(missing)}",
            where=where,
            why=f"the file holds {sorted(arrays)}, the network takes {names}",
            fix="name the arrays after the network's inputs",
        )
    return {n: rest[n] for n in names}


def split_batches(arrays: Mapping[str, Array], graph: Graph, where: str) -> Batches:
    """Cut arrays of many samples into batches of the network's own batch size.

    An array fits if its shape is the input's, or if all but the first axis are equal and the first
    is a multiple of the input's, or (an input without a batch axis) if it has one axis more.

    Raises:
        DlccError: an array does not fit, or the inputs have different numbers of samples.
    """
    feeds: dict[str, Array] = {}
    for value in graph.inputs:
        if arrays[value.name].dtype.kind in "OSUMmc":
            raise _bad_array(where, value.name, f"it is of dtype {arrays[value.name].dtype}")
        feeds[value.name] = _stacked(arrays[value.name], value.type.shape, value.name, where)
        feeds[value.name] = _stored(feeds[value.name], value.type)
    counts = {name: len(a) for name, a in feeds.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise DlccError(
            ExitCode.DATA,
            "the inputs' sample counts do not fit",
            where=where,
            why=f"batches per input: {counts}",
            fix="give every input the same number of samples, at least one",
        )

    def batches() -> Iterator[dict[str, Array]]:
        for index in range(next(iter(counts.values()), 0)):
            yield {name: a[index] for name, a in feeds.items()}

    return batches


def _stacked(array: Array, shape: tuple[int, ...], name: str, where: str) -> Array:
    if tuple(array.shape) == shape:
        return array[None]
    if array.ndim == len(shape) + 1 and tuple(array.shape[1:]) == shape:
        return array
    fits = shape and array.ndim == len(shape) and tuple(array.shape[1:]) == shape[1:]
    if fits and shape[0] and array.shape[0] >= shape[0]:
        count = array.shape[0] // shape[0]
        return array[: count * shape[0]].reshape(count, *shape)
    raise _bad_array(where, name, f"its shape {list(array.shape)} does not fit {list(shape)}")


def _stored(array: Array, type_: TensorType) -> Array:
    """As the network takes it: real numbers become codes where it takes codes."""
    encoding = type_.encoding
    if array.dtype.kind == "f" and isinstance(encoding, Affine) and type_.dtype == F32:
        return quantise_real(array.astype(np.float32), encoding)
    return array.astype(type_.storage.numpy, copy=False)


def _bad_array(where: str, name: str, why: str) -> DlccError:
    return DlccError(
        ExitCode.DATA,
        f"the data for input {name!r} does not fit the network",
        where=where,
        why=why,
        fix="stack samples along the first axis, preprocessed as the network expects",
    )
