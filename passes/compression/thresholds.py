"""From sign to sign in integers: what lies between two binary layers becomes thresholds.

A layer of binary activations sums products of signs. Batch normalisation, clamps and whatever else
works number by number and channel by channel turn a sum into the real number whose sign is taken
next. All sums there can be are few, so the chain is run on each of them: where its result changes
its sign once only, the layer compares the sum with a threshold instead, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dlcc import numerics
from dlcc.ir import Binary, Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import build, op_of
from dlcc.ops.binary import Binary as BinaryOp
from dlcc.ops.integer import weight_scales
from dlcc.ops.prelu import PRelu
from dlcc.ops.unary import Unary

MOST_RESULTS = 1 << 26
"""Sums of all channels that are tried at most."""

Remark = Callable[[Literal["applied", "refused"], str, str], None]
"""Called with kind, ``loc`` and message."""


@dataclass(frozen=True)
class _Chain:
    """A layer and what works on its result, up to the node that takes signs."""

    layer: Node
    nodes: tuple[Node, ...]
    signs: Node


def fold_thresholds(graph: Graph, remark: Remark) -> int:
    """Let layers of binary activations give signs where only those are read; returns how many."""
    count = 0
    for node in list(graph.nodes):
        if node.op != "quantize" or not node.output.type.is_binary:
            continue
        chain = _chain(graph, node)
        if chain is None:
            continue
        why = _fold(graph, chain)
        remark("refused" if why else "applied", chain.layer.loc, why or _words(chain))
        count += not why
    return count


def _words(chain: _Chain) -> str:
    between = ", ".join(node.op for node in chain.nodes)
    folded = f"; {between} became thresholds" if between else ""
    return f"its result is the sign alone{folded}"


def _chain(graph: Graph, signs: Node) -> _Chain | None:
    nodes: list[Node] = []
    value = signs.input(0)
    while True:
        node = value.producer
        if node is None or graph.use_count(value) != 1:
            return None
        if node.op in ("conv2d", "linear"):
            if not node.input(0).type.is_binary:
                return None
            return _Chain(node, tuple(reversed(nodes)), signs)
        operand = _operand(node)
        if operand is None:
            return None
        nodes.append(node)
        value = node.input(operand)


def _operand(node: Node) -> int | None:
    """The operand that an elementwise node works on, where all others are constants."""
    if not isinstance(op_of(node), Unary | BinaryOp | PRelu) and node.op != "batch_norm":
        return None
    given = [i for i, v in enumerate(node.inputs) if v is not None and not v.is_constant]
    if len(given) != 1 or node.input(given[0]).type != node.output.type:
        return None
    return given[0] if node.output.type.is_dense else None


def _fold(graph: Graph, chain: _Chain) -> str:
    """Rewrite; returns why not, or ""."""
    layer, out = chain.layer, chain.signs.output.type.encoding
    assert isinstance(out, Binary)
    if layer.optional_input(3) is not None:
        return "a residual is added before the sign is taken"
    if not chain.nodes:
        layer.output.type = layer.output.type.with_(encoding=out)
        graph.replace_all_uses(chain.signs.output, layer.output)
        graph.erase(chain.signs)
        return ""
    if not isinstance(layer.input(1).type.encoding, Binary):
        return "thresholds are made for binary weights alone"
    found = _thresholds(chain)
    if isinstance(found, str):
        return found
    weight, bias = found
    kept = {k: v for k, v in layer.attrs.items() if k not in ("act_min", "act_max")}
    real = np.where(weight, np.float32(-1), np.float32(1))
    operands = [
        layer.input(0),
        graph.add_constant(real, encoding=Binary((1.0,)), name=layer.input(1).name),
        graph.add_constant(bias, name=f"{layer.output.name}.thresholds"),
    ]
    types = [layer.output.type.with_(encoding=out)]
    made = build(graph, layer.op, operands, kept, loc=layer.loc, types=types, before=layer)
    graph.replace_all_uses(chain.signs.output, made.output)
    for node in (chain.signs, *reversed(chain.nodes), layer):
        graph.erase(node)
    return ""


def _thresholds(chain: _Chain) -> tuple[Array, Array] | str:
    """Which weights are negative, and the bias, of a layer with the signs of the chain's end."""
    layer = chain.layer
    weight, source = layer.input(1), layer.input(0).type.encoding
    assert isinstance(source, Binary)
    constant, encoding = weight.constant, weight.type.encoding
    assert constant is not None
    assert isinstance(encoding, Binary)
    shape = weight.type.shape
    reach = int(np.prod(shape[1:]))
    if layer.output.type.rank < 2 or shape[0] * (2 * reach + 1) > MOST_RESULTS:
        return f"{shape[0]} channels of {2 * reach + 1} sums are too many to try"
    sums = np.arange(-reach, reach + 1)
    negative = _negative(chain, sums)
    if isinstance(negative, str):
        return negative
    dead = np.broadcast_to(np.asarray(encoding.scales) == 0, shape[:1])
    negative[dead] = negative[dead, reach, None]  # their sum is 0
    changes = negative[:, 1:] != negative[:, :-1]
    if (changes.sum(axis=1) > 1).any():
        return "the sign changes more than once as the sum grows"
    falling = ~negative[:, 0] & negative[:, -1]
    below = negative.sum(axis=1)
    rising = -reach + below  # the least sum that is not negative
    turned = reach + 1 - below  # of sums with all signs turned round
    first = np.where(falling, 1 - turned, rising)
    scale = np.float32(source.scales[0])
    bias = ((0.5 - first) * np.float64(scale)).astype(np.float32)
    again = np.where(falling[:, None], -sums, sums).astype(np.float32) * scale + bias[:, None] < 0
    if not np.array_equal(again, negative):
        return "float32 does not hold its thresholds"
    codes = encoding.unpack(constant.parts, weight.type.elements).reshape(shape) != 0
    return codes ^ falling.reshape(-1, *(1 for _ in shape[1:])), bias


def _negative(chain: _Chain, sums: Array) -> Array | str:
    """Whether the result is below 0, bool [channels, sums]."""
    layer, rank = chain.layer, chain.layer.output.type.rank
    channels, is_conv = layer.input(1).type.shape[0], layer.op == "conv2d"
    axis, other = (1, 2) if is_conv else (rank - 1, rank - 2)
    op, bias = op_of(layer), layer.optional_input(2)
    encoding, source = layer.input(1).type.encoding.uniform, layer.input(0).type.encoding.uniform
    assert encoding is not None
    assert source is not None
    scales = source.scale * weight_scales(encoding, channels)
    real = numerics.dequantise(sums[None, :], numerics.multiplier(scales)[:, None])
    if bias is not None:
        real = real + bias.decoded().astype(np.float32)[:, None]
    real = np.clip(real, np.float32(op.get(layer, "act_min")), np.float32(op.get(layer, "act_max")))
    laid = [1] * rank
    laid[axis], laid[other] = channels, sums.size
    result = (real if is_conv else real.T).reshape(laid)
    for node in chain.nodes:
        if not all(_per_channel(v, rank, axis, node) for v in node.inputs):
            return f"{node.op} {node.loc!r} does not treat all places of a channel alike"
        operands = [
            None if v is None else v.decoded() if v.is_constant else result for v in node.inputs
        ]
        with np.errstate(all="ignore"):
            [result] = op_of(node).evaluate(node, operands)
    flat = result.reshape(channels, -1) if is_conv else result.reshape(-1, channels).T
    return np.asarray(flat < 0).copy()


def _per_channel(value: Value | None, rank: int, axis: int, node: Node) -> bool:
    """Whether a constant operand has one number, or one per channel."""
    if value is None or not value.is_constant or node.op == "batch_norm":
        return True
    shape = (1,) * (rank - value.type.rank) + value.type.shape
    return all(size == 1 for i, size in enumerate(shape) if i != axis)


__all__ = ["fold_thresholds"]
