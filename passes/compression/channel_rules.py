"""What each op does with channels: hands them on, unites them, makes new ones, or needs all."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np

from dlcc.ir import AttrValue, Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import OPS, op_of
from dlcc.ops.binary import Binary
from dlcc.ops.logic import Where
from dlcc.ops.prelu import PRelu
from dlcc.ops.reduce import Reduction
from dlcc.ops.unary import Unary
from passes.compression.channels import (
    Channels,
    Coupling,
    Keep,
    Resize,
    Track,
    count_kept,
    replaced,
    uncuttable,
)
from passes.compression.rows import groups_of
from passes.names import named
from passes.quantization.structure import LAYERS, output_axis, residual_slot

Rule = Callable[[Coupling, Node], None]

_ELEMENTWISE = (Unary, Binary, PRelu, Where)


def analyse(graph: Graph, only: Collection[str] = (), exclude: Collection[str] = ()) -> Channels:
    """Find the groups of coupled channels of a network.

    Args:
        graph: the network; it stays as it is.
        only: patterns (as of a shell) of ``loc`` of the layers that may lose channels; empty for
            all.
        exclude: patterns of layers that may not.
    """
    coupling = Coupling(graph)
    for node in graph.nodes:
        _rule(node)(coupling, node)
        if node.op in LAYERS and node.output in coupling.tracks:
            atoms = coupling.tracks[node.output].atoms
            if only and not named(only, node.loc):
                coupling.freeze(atoms, f"{node.loc!r} is not chosen by option")
            if named(exclude, node.loc):
                coupling.freeze(atoms, f"{node.loc!r} is excluded by option")
    return coupling.done()


def _rule(node: Node) -> Rule:
    if node.op in _RULES:
        return _RULES[node.op]
    op = op_of(node)
    if isinstance(op, _ELEMENTWISE):
        return _elementwise
    return _reduction if isinstance(op, Reduction) else _needs_all


def _needs_all(c: Coupling, node: Node) -> None:
    c.close(node, f"{node.op} {node.loc!r} needs all channels")


# -- layers ------------------------------------------------------------------------------------


def _layer(c: Coupling, node: Node) -> None:
    why = uncuttable(node.input(1))
    if not why and not np.isfinite(node.input(1).decoded()).all():
        why = "holds NaN or infinite numbers"
    if why:
        c.refuse(node, f"the weight of {node.op} {node.loc!r} {why}")
    elif groups_of(node) > 1:
        _grouped(c, node)
    else:
        _whole(c, node)


def _feature_axis(node: Node) -> int:
    return node.input(0).type.rank - 1 if node.op == "linear" else 1


def _read(c: Coupling, node: Node) -> Array | None:
    """Atoms of the channels that a layer's weight reads; other axes it needs whole."""
    track = c.tracks.get(node.input(0))
    if track is None:
        return None
    if track.axis != _feature_axis(node):
        c.freeze(track.atoms, f"{node.op} {node.loc!r} does not sum over them")
        return None
    return track.atoms


def _whole(c: Coupling, node: Node) -> None:
    """A layer of one group: all outputs read all inputs."""
    weight, made = node.input(1), output_axis(node)
    read = _read(c, node)
    atoms = c.fresh(weight.type.shape[made])
    c.share(weight, read, atoms)
    c.cut(node, 1, made, atoms, "out")
    if read is not None:
        c.cut(node, 1, 1 - made, read, "in")
    _results(c, node, atoms)


def _grouped(c: Coupling, node: Node) -> None:
    """A grouped layer loses whole groups: their inputs and outputs are one."""
    groups, read = groups_of(node), _read(c, node)
    if read is None:
        return
    members = read.reshape(groups, -1)
    for column in range(1, members.shape[1]):
        c.unite(members[:, 0], members[:, column])
    outputs = node.output.type.shape[1] // groups
    atoms = np.repeat(members[:, 0], outputs)
    c.share(node.input(1), read, atoms)
    c.cut(node, 1, 0, read if node.op == "conv_transpose2d" else atoms, "tied")

    def attributes(keep: Keep) -> dict[str, AttrValue]:
        return {"groups": count_kept(keep, members[:, 0])}

    c.resizes.append(Resize(node, attributes))
    _results(c, node, atoms)


def _results(c: Coupling, node: Node, atoms: Array) -> None:
    """Bias, residual and track of a layer's output."""
    c.cut(node, 2, 0, atoms, "parameter")
    axis = node.output.type.rank - 1 if node.op == "linear" else 1
    slot = residual_slot(node)
    residual = None if slot is None else node.optional_input(slot)
    if slot is not None and residual is not None:
        _join(c, node, slot, residual, Track(axis, atoms))
    c.tracks[node.output] = Track(axis, atoms)


def _join(c: Coupling, node: Node, operand: int, value: Value, track: Track) -> None:
    """Couple an operand of the result's shape."""
    other = c.tracks.get(value)
    if other is not None and other.axis == track.axis:
        c.unite(track.atoms, other.atoms)
        return
    if other is not None:
        c.freeze(other.atoms, f"{node.op} {node.loc!r} adds them along another axis")
    c.cut(node, operand, track.axis, track.atoms, "parameter")  # freezes what is computed


# -- between layers ----------------------------------------------------------------------------


def _elementwise(c: Coupling, node: Node) -> None:
    """Channel by channel; operands are broadcast as numpy does."""
    shape = node.output.type.shape
    tracks = {
        i: Track(c.tracks[v].axis + len(shape) - v.type.rank, c.tracks[v].atoms)
        for i, v in enumerate(node.inputs)
        if v is not None and v in c.tracks
    }
    axes = {t.axis for t in tracks.values() if len(t.atoms) == shape[t.axis]}
    if len(axes) != 1:
        c.close(node, f"{node.op} {node.loc!r} mixes axes")
        return
    (axis,) = axes
    full = {i for i, t in tracks.items() if t.axis == axis and len(t.atoms) == shape[axis]}
    result = tracks[min(full)]
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        own = axis - (len(shape) - value.type.rank)
        if index in full:
            c.unite(result.atoms, tracks[index].atoms)
            continue
        if index in tracks:
            c.freeze(tracks[index].atoms, f"{node.op} {node.loc!r} broadcasts them")
        if own >= 0 and value.type.shape[own] == shape[axis] > 1:
            c.cut(node, index, own, result.atoms, "parameter")
    c.tracks[node.output] = result


def _same(c: Coupling, node: Node) -> None:
    """Channels stay where they are, as long as they lie along axis 1 (pooling, resampling)."""
    track = c.tracks.get(node.input(0))
    if track is None:
        return
    if track.axis != 1:
        _needs_all(c, node)
        return
    c.tracks[node.output] = track


def _norm(c: Coupling, node: Node) -> None:
    """Normalisation of each channel by itself, with parameters per channel."""
    _same(c, node)
    track = c.tracks.get(node.output)
    if track is not None:
        for index in range(1, len(node.inputs)):
            c.cut(node, index, 0, track.atoms, "parameter")


def _cast(c: Coupling, node: Node) -> None:
    if node.input(0) in c.tracks:
        c.tracks[node.output] = c.tracks[node.input(0)]


def _reduction(c: Coupling, node: Node) -> None:
    """Over other axes than the channels'."""
    track = c.tracks.get(node.input(0))
    if track is None:
        return
    op = op_of(node)
    assert isinstance(op, Reduction)
    axes = op.axes(node)
    if track.axis in axes:
        _needs_all(c, node)
        return
    dropped = 0 if op.get(node, "keepdims") else sum(a < track.axis for a in axes)
    c.tracks[node.output] = Track(track.axis - dropped, track.atoms)


def _concat(c: Coupling, node: Node) -> None:
    values = [v for v in node.inputs if v is not None]
    tracks = [c.tracks.get(v) for v in values]
    axes = {t.axis for t in tracks if t is not None}
    if len(axes) != 1:
        _needs_all(c, node)
        return
    (axis,) = axes
    if op_of(node).get(node, "axis") != axis:
        first, *others = (t for t in tracks if t is not None)
        if len(others) + 1 < len(values):
            _needs_all(c, node)
            return
        for other in others:
            c.unite(first.atoms, other.atoms)
        c.tracks[node.output] = first
        return
    parts = []
    for index, (value, track) in enumerate(zip(values, tracks, strict=True)):
        atoms = c.fresh(value.type.shape[axis]) if track is None else track.atoms
        if track is None:
            c.cut(node, index, axis, atoms, "parameter")
        parts.append(atoms)
    c.tracks[node.output] = Track(axis, np.concatenate(parts))


def _slice(c: Coupling, node: Node) -> None:
    track = c.tracks.get(node.input(0))
    if track is None:
        return
    axes = tuple(node.attrs["axes"])  # type: ignore[arg-type]
    if track.axis not in axes:
        c.tracks[node.output] = track
        return
    at = axes.index(track.axis)
    starts, ends, steps = (tuple(node.attrs[k]) for k in ("starts", "ends", "steps"))  # type: ignore[arg-type]
    if steps[at] != 1:
        _needs_all(c, node)
        return
    before, inside = track.atoms[: starts[at]], track.atoms[starts[at] : ends[at]]

    def attributes(keep: Keep) -> dict[str, AttrValue]:
        start = count_kept(keep, before)
        return {
            "starts": replaced(starts, at, start),
            "ends": replaced(ends, at, start + count_kept(keep, inside)),
        }

    c.resizes.append(Resize(node, attributes))
    c.tracks[node.output] = Track(track.axis, inside)


def _pad(c: Coupling, node: Node) -> None:
    """Channels of constants before and after, which can be removed like any others."""
    track = c.tracks.get(node.input(0))
    if track is None:
        return
    pads, rank = tuple(node.attrs["pads"]), node.output.type.rank  # type: ignore[arg-type]
    low, high = pads[track.axis], pads[track.axis + rank]
    if not low and not high:
        c.tracks[node.output] = track
        return
    if op_of(node).get(node, "mode") != "constant":
        _needs_all(c, node)
        return
    before, after = c.fresh(low), c.fresh(high)

    def attributes(keep: Keep) -> dict[str, AttrValue]:
        some = replaced(pads, track.axis, count_kept(keep, before))
        return {"pads": replaced(some, track.axis + rank, count_kept(keep, after))}

    c.resizes.append(Resize(node, attributes))
    c.tracks[node.output] = Track(track.axis, np.concatenate([before, track.atoms, after]))


def _transpose(c: Coupling, node: Node) -> None:
    track = c.tracks.get(node.input(0))
    if track is not None:
        perm = tuple(node.attrs["perm"])  # type: ignore[arg-type]
        c.tracks[node.output] = Track(perm.index(track.axis), track.atoms)


def _reshape(c: Coupling, node: Node) -> None:
    """A channel becomes the places, along one axis of the result, where its numbers are put."""
    track = c.tracks.get(node.input(0))
    if track is None:
        return
    source, shape = node.input(0).type.shape, node.output.type.shape
    behind, whole = math.prod(source[track.axis + 1 :]), math.prod(source[track.axis :])
    for axis, extent in enumerate(shape):
        each = math.prod(shape[axis + 1 :])
        # the axis takes in all channels, and its places never lie in two of them
        if each and whole and behind % each == 0 and (extent * each) % whole == 0:
            break
    else:
        _needs_all(c, node)
        return
    atoms = track.atoms[np.arange(extent) * each // behind % len(track.atoms)]

    def attributes(keep: Keep) -> dict[str, AttrValue]:
        return {"shape": replaced(shape, axis, count_kept(keep, atoms))}

    c.resizes.append(Resize(node, attributes))
    c.tracks[node.output] = Track(axis, atoms)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(LAYERS, _layer),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "resize2d"), _same),
    **dict.fromkeys(("batch_norm", "instance_norm"), _norm),
    "cast": _cast,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "transpose": _transpose,
    "reshape": _reshape,
}
assert _RULES.keys() <= OPS.keys()

__all__ = ["analyse"]
