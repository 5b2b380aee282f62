"""What the accumulators of a compiled network can reach: a certificate for every integer layer.

A certificate holds the range of a layer's accumulators (products, bias and residual) for these
weights and any input, in exact integers (:mod:`dlcc.analysis.accumulators`), so that anybody who
has the graph can compute it again. Kernels compute modulo 2^32: the result is right if the range
fits 32 bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import numpy as np

from dlcc import numerics
from dlcc.analysis.accumulators import (
    Bounds,
    ChannelBounds,
    Overflow,
    of_ranges,
    of_tiles,
    of_weights,
)
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, Graph, Node, Value, print_graph
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from dlcc.ops.integer import affine_of, codes_of, weight_scales
from dlcc.ops.recurrent import Recurrent, weight_codes
from dlcc.ops.recurrent_codes import STATE

REGISTER = 32
"""Width of the integers in which every kernel's sums end."""


@dataclass(frozen=True)
class Assignment:
    """An accumulator for which a pass chose a layer's widths; the residual is added behind it.

    Attributes:
        accumulator: its width.
        overflow: "wrap" or "saturate".
        guarantee: for what it suffices: "ranges", "weights" or "results".
        low: the smallest sum of products and bias, as guaranteed.
        high: the largest.
        tile: it sums up the products of so many neighbouring input channels, of bare codes, and is
            emptied into a wider one; 0: it holds the whole sum.
    """

    accumulator: int
    overflow: str
    guarantee: str
    low: int
    high: int
    tile: int = 0


@dataclass(frozen=True)
class Certificate:
    """The accumulators of one layer.

    Attributes:
        layer: its name.
        value: name of its result in the IR.
        op: of the IR.
        terms: products in a sum.
        low: the smallest accumulator.
        high: the largest.
        bits: of the narrowest register that holds them all.
        guarantee: "weights": for these weights and any input; "ranges": for any operands of these
            widths (products of two activations).
        accumulator: width in which the kernel sums.
        assigned: what a pass promised, where one chose widths.
    """

    layer: str
    value: str
    op: str
    terms: int
    low: int
    high: int
    bits: int
    guarantee: str
    accumulator: int = REGISTER
    assigned: Assignment | None = None

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        data = asdict(self)
        if self.assigned is None:
            del data["assigned"]
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Certificate:
        """The inverse of :meth:`to_json`.

        Raises:
            TypeError: a field is missing or unknown.
        """
        rest = {k: v for k, v in data.items() if k != "assigned"}
        found = data.get("assigned")
        return Certificate(**rest, assigned=None if found is None else Assignment(**found))


# -- one layer ---------------------------------------------------------------------------------


def certify(
    graph: Graph, assigned: Mapping[str, Assignment] | None = None
) -> tuple[Certificate, ...]:
    """Certificates of the integer layers of a graph, in execution order.

    Args:
        graph: the network after its passes.
        assigned: promises of passes, by the name of a layer's result.

    Raises:
        DlccError: PASS, an accumulator can leave 32 bits, or what a pass promised does not hold.
    """
    found = []
    for node in graph.nodes:
        operands = _operands(node)
        if operands is None:
            continue
        promise = (assigned or {}).get(node.outputs[0].name)
        made = _certificate(node, *operands, promise)
        if made.bits > REGISTER:
            raise _overflow(made)
        if promise is not None:
            _check_promise(made, promise, _assigned_bounds(node, *operands, promise))
        found.append(made)
    return tuple(found)


def _operands(node: Node) -> tuple[Affine, Affine] | None:
    """Codes of both factors of an integer layer; None for any other node."""
    if isinstance(op_of(node), Recurrent):
        codes = weight_codes(node)
        return None if codes is None else (STATE, codes)
    slots = op_of(node).multiplied
    if not slots:
        return None
    type_ = node.input(slots[0]).type
    if not isinstance(type_.encoding, Affine) and not type_.is_binary:
        return None
    data, other = affine_of(node.input(slots[0])), affine_of(node.input(slots[1]))
    return None if data is None or other is None else (data, other)


def _certificate(
    node: Node, data: Affine, other: Affine, promise: Assignment | None
) -> Certificate:
    sums = _sums(node, data, other)
    total = _with_residual(node, data, other, sums).all
    constant = node.input(1).is_constant
    return Certificate(
        node.loc,
        node.outputs[0].name,
        node.op,
        _terms(node),
        total.low,
        total.high,
        total.bits,
        "weights" if constant else "ranges",
        assigned=promise,
    )


def _centred(codes: Affine) -> Bounds:
    """What is multiplied: codes less their zero point."""
    low, high = codes.code_range
    return Bounds(low - max(codes.zero_points), high - min(codes.zero_points))


def _terms(node: Node) -> int:
    """Products in a sum."""
    if node.op == "matmul":
        return int(node.input(0).type.shape[-1])
    shape = node.input(1).type.shape
    if node.op == "conv_transpose2d":
        return int(shape[0] // _groups(node) * prod(shape[2:]))
    return int(prod(shape[1:]))


def _groups(node: Node) -> int:
    return int(op_of(node).get(node, "groups"))


def weight_rows(node: Node) -> Array:
    """Codes of a constant weight: a row [K] for each output channel."""
    value = node.input(1)
    codes = codes_of(value, _stored(value)).reshape(value.type.shape)
    if node.op != "conv_transpose2d":
        return np.asarray(codes.reshape(len(codes), -1))
    groups = _groups(node)
    split = codes.reshape(groups, codes.shape[0] // groups, codes.shape[1], -1)
    return np.asarray(np.moveaxis(split, 2, 1).reshape(groups * codes.shape[1], -1))


def _stored(value: Value) -> Array:
    """A constant as an op's reference receives it: codes where it is Affine, else real numbers."""
    assert value.constant is not None
    if isinstance(value.type.encoding, Affine):
        return np.asarray(value.constant.parts["values"])
    return value.decoded()


def _bias(node: Node) -> Array | None:
    bias = None if node.op == "matmul" else node.optional_input(2)
    if bias is None or not bias.is_constant or not isinstance(bias.type.encoding, Affine):
        return None
    return _stored(bias).astype(np.int64)


def _sums(
    node: Node, data: Affine, other: Affine, overflow: Overflow = Overflow.WRAP
) -> ChannelBounds:
    """Bounds of products and bias, per channel."""
    if node.input(1).is_constant:
        return of_weights(weight_rows(node), _centred(data), _bias(node), overflow)
    return _any(node, _centred(other), data, overflow)


def _any(node: Node, weights: Bounds, data: Affine, overflow: Overflow) -> ChannelBounds:
    """Bounds for any weights of a range."""
    found = of_ranges(_terms(node), weights, _centred(data), overflow)
    bias = _bias(node)
    start = np.zeros(1, np.int64) if bias is None else bias
    return ChannelBounds(start + found.low, start + found.high)


def _with_residual(node: Node, data: Affine, other: Affine, sums: ChannelBounds) -> ChannelBounds:
    """Bounds once the residual is added."""
    names = [name.rstrip("?*") for name in op_of(node).operands]
    slot = names.index("residual") if "residual" in names else None
    value = None if slot is None else node.optional_input(slot)
    if value is None or not isinstance(value.type.encoding, Affine):
        return sums
    channels = len(sums.low)
    unit = data.scale * weight_scales(other, channels)
    codes = np.array(value.type.affine.code_range)[:, None]
    ratio = numerics.multiplier(value.type.affine.scale / unit)
    centred = (codes - value.type.affine.zero_point).astype(np.float32)
    terms = np.rint(centred * ratio).astype(np.float64).astype(np.int64)
    return ChannelBounds(sums.low + terms.min(axis=0), sums.high + terms.max(axis=0))


def with_kernels(
    certificates: Sequence[Certificate], layers: Iterable[Mapping[str, Any]]
) -> tuple[Certificate, ...]:
    """The same with the widths in which the chosen kernels sum.

    Args:
        certificates: in execution order.
        layers: rows of lowering's report, in execution order.
    """
    widths: dict[tuple[object, object], list[int]] = {}
    for row in layers:
        widths.setdefault((row["layer"], row["op"]), []).append(int(row["sum_bits"]))
    return tuple(replace(one, accumulator=widths[one.layer, one.op].pop(0)) for one in certificates)


def digest(graph: Graph) -> str:
    """SHA-256 of a graph's text, which holds hashes of its constants."""
    return hashlib.sha256(print_graph(graph).encode()).hexdigest()


# -- promises ----------------------------------------------------------------------------------


def _assigned_bounds(node: Node, data: Affine, other: Affine, promise: Assignment) -> Bounds | None:
    """What the promise says, computed again; None where it is about the calibration data."""
    overflow, last = Overflow(promise.overflow), (1 << (other.bits - 1)) - 1
    bare = Bounds(*data.code_range)
    if promise.tile and promise.guarantee == "weights":
        taps = prod(node.input(1).type.shape[2:])
        return of_tiles(weight_rows(node), bare, promise.tile, taps, overflow).all
    if promise.tile:
        return of_ranges(promise.tile, Bounds(-last, last), bare, overflow)
    if promise.guarantee == "weights":
        return _sums(node, data, other, overflow).all
    if promise.guarantee == "ranges":
        return _any(node, Bounds(-last, last), data, overflow).all
    return None


def _check_promise(made: Certificate, promise: Assignment, again: Bounds | None) -> None:
    stated = Bounds(promise.low, promise.high)
    if not stated.fits(promise.accumulator):
        why = f"{stated.low}..{stated.high} does not fit {promise.accumulator} bits"
    elif again is not None and (again.low < stated.low or again.high > stated.high):
        why = f"sums reach {again.low}..{again.high}, stated are {stated.low}..{stated.high}"
    else:
        return
    raise DlccError(
        ExitCode.VERIFICATION,
        "what was said of an accumulator does not hold",
        where=made.layer,
        why=why,
        fix="compile the model again; report it if that does not help",
    )


def _overflow(made: Certificate) -> DlccError:
    return DlccError(
        ExitCode.PASS,
        "an accumulator could overflow",
        where=made.layer,
        why=f"its sums of {made.terms} products reach {made.low}..{made.high}, which takes "
        f"{made.bits} bits of {REGISTER}",
        fix=f"leave the layer in float: quantize{{exclude=[{made.layer}]}}, or give it fewer bits",
    )


# -- comparison --------------------------------------------------------------------------------


def check(stated: Sequence[Mapping[str, Any]], graph: Graph, where: str) -> tuple[Certificate, ...]:
    """Compute certificates again and compare them with those that are stated.

    Args:
        stated: as :meth:`Certificate.to_json` made them.
        graph: the network after its passes.
        where: what states them, for errors.

    Returns:
        The certificates.

    Raises:
        DlccError: VERIFICATION, with the first layer that differs and both sides' numbers.
    """
    try:
        told = [Certificate.from_json(entry) for entry in stated]
    except (TypeError, AttributeError) as error:
        raise _differs(where, "", f"a certificate cannot be read: {error}") from None
    promises = {c.value: c.assigned for c in told if c.assigned is not None}
    found = certify(graph, promises)
    _check_layers([c.value for c in told], [c.value for c in found], where)
    for old, new in zip(told, found, strict=True):
        for field, value in asdict(new).items():
            if field != "accumulator" and getattr(old, field) != getattr(new, field):
                why = f"{field} is stated as {getattr(old, field)}, computed again it is {value}"
                raise _differs(where, new.layer, why)
        if not Bounds(old.low, old.high).fits(REGISTER) or old.accumulator > REGISTER:
            raise _differs(where, new.layer, f"its {old.bits} bits do not fit the accumulator")
    return found


def _check_layers(told: Sequence[str], found: Sequence[str], where: str) -> None:
    if list(told) == list(found):
        return
    missing, foreign = _less(found, told), _less(told, found)
    why = f"no certificate for {', '.join(missing[:4])}" if missing else ""
    why = why or f"certificates for {', '.join(foreign[:4])}, which are no integer layers"
    raise _differs(where, "", why if missing or foreign else "they are in another order")


def _less(these: Iterable[str], those: Sequence[str]) -> list[str]:
    return [name for name in these if name not in those]


def _differs(where: str, layer: str, why: str) -> DlccError:
    return DlccError(
        ExitCode.VERIFICATION,
        "the certificates of accumulators are not those of the network",
        where=f"{where}, layer {layer}" if layer else where,
        why=why,
        fix="compile the model again",
    )


__all__ = [
    "REGISTER",
    "Assignment",
    "Certificate",
    "certify",
    "check",
    "digest",
    "weight_rows",
    "with_kernels",
]
