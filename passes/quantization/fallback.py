"""Operations that rounding to codes spoils: they and what leads to them stay float.

A logarithm or a square root of a power spectrum, or a difference of nearly equal numbers, makes
much of errors that were small. Both networks, the float one and one whose activations are rounded
to codes, run on a few samples; where an operation's result is far noisier than its operands, and
poor, codes are no form for them. The operations between it and the layers before it stay float
then, and those layers give float results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dlcc.analysis.blas import single_threaded_blas
from dlcc.analysis.execute import constant_array, last_uses
from dlcc.ir import Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from passes.quantization.fit import EncodingAt
from passes.quantization.structure import ACCUMULATING, Structure, is_real, key

AMPLIFIED_DB = 10.0
"""Lost signal to noise from which an operation is said to make much of its operands' errors."""

POOR_DB = 20.0
"""Signal to noise of a result from which on it is good enough, whatever was lost."""

FINE_DB = 40.0
"""What operands without noise are taken for: that of codes is about as much."""

FEEDS = 2
"""Samples that are run."""

BITS = 8
"""Width of the codes: fewer are wanted for other reasons than accuracy, and spoil more."""


def spoiled(
    graph: Graph, plan: Structure, encoding_at: EncodingAt, feeds: Sequence[Mapping[str, Array]]
) -> dict[str, str]:
    """Keys of the nodes that are to stay float -> why.

    Args:
        graph: a float network.
        plan: which of its nodes would work on codes.
        encoding_at: encodings of the groups of values.
        feeds: inputs of the network.
    """
    if all(n.op in ACCUMULATING for n in graph.nodes if key(n) in plan.integer):
        return {}
    noise = _Noise(graph, plan, encoding_at)
    for feed in feeds:
        noise.run(feed)
    out: dict[str, str] = {}
    for node in graph.nodes:
        if key(node) not in plan.integer or node.op in ACCUMULATING:
            continue
        before, after = noise.db(node)
        if after >= POOR_DB or before - after < AMPLIFIED_DB:
            continue
        why = f"on codes, {before:.0f} dB over noise would become {after:.0f} dB in {node.op}"
        if node.loc:
            why += f" {node.loc}"
        for name in _chain(node, plan):
            out.setdefault(name, why)
    return out


def _chain(node: Node, plan: Structure) -> list[str]:
    """Keys of a node and of what leads to it from the layers before it."""
    seen, ahead = {key(node)}, [node]
    while ahead:
        for value in ahead.pop().inputs:
            source = None if value is None else value.producer
            if source is None or source.op in ACCUMULATING or key(source) in seen:
                continue
            if key(source) in plan.integer:
                seen.add(key(source))
                ahead.append(source)
    return sorted(seen)


class _Noise:
    """Signal and noise of values, of each before its own rounding.

    What rounding one of them loses shows in what reads it.
    """

    def __init__(self, graph: Graph, plan: Structure, encoding_at: EncodingAt) -> None:
        self.graph, self.plan, self.encoding_at = graph, plan, encoding_at
        self.powers: dict[str, Array] = {}

    def db(self, node: Node) -> tuple[float, float]:
        """Signal to noise of the worst operand and of the result, in dB."""
        operands = [v for v in node.inputs if v is not None and v.name in self.powers]
        before = min((_db(*self.powers[v.name]) for v in operands), default=FINE_DB)
        return min(before, FINE_DB), _db(*self.powers.get(node.outputs[0].name, (1.0, 0.0)))

    def run(self, feed: Mapping[str, Array]) -> None:
        """Both networks on one feed."""
        real: dict[Value, Array] = {v: feed[v.name] for v in self.graph.inputs}
        rough = dict(real)
        over = last_uses(self.graph)
        for node in self.graph.nodes:
            with single_threaded_blas(), np.errstate(all="ignore"):
                wanted = op_of(node).reference(node, [_given(v, real) for v in node.inputs])
                made = op_of(node).reference(
                    node, [self._read(node, v, rough) for v in node.inputs]
                )
            for value, a, b in zip(node.outputs, wanted, made, strict=True):
                self._note(value, a, b)
                real[value], rough[value] = a, b
                if key(node) in self.plan.integer and key(node) not in self.plan.dense_result:
                    rough[value] = self._rounded(value, b)
            for value in over.get(node, ()):
                real.pop(value, None)
                rough.pop(value, None)

    def _read(self, node: Node, value: Value | None, live: Mapping[Value, Array]) -> Array | None:
        array = _given(value, live)
        moving = value is not None and not value.is_constant
        if array is None or value is None or not moving or key(node) not in self.plan.integer:
            return array
        return self._rounded(value, array)

    def _rounded(self, value: Value, array: Array) -> Array:
        if not is_real(value) or value.name not in self.plan.group:
            return array
        encoding = self.encoding_at(self.plan.find(value.name), BITS)
        return encoding.dequantise(encoding.quantise(np.nan_to_num(array)))

    def _note(self, value: Value, wanted: Array, made: Array) -> None:
        """Signal and noise of a value before it is rounded itself."""
        if is_real(value):
            old = self.powers.get(value.name, np.zeros(2))
            self.powers[value.name] = old + _power(wanted, made)


def _given(value: Value | None, live: Mapping[Value, Array]) -> Array | None:
    if value is None:
        return None
    return constant_array(value) if value.is_constant else live[value]


def _power(wanted: Array, made: Array) -> tuple[float, float]:
    """Of the signal and of the noise, where the signal is finite, within the signal's range."""
    finite = np.isfinite(wanted)
    wanted = wanted[finite].astype(np.float64)
    if not wanted.size:
        return 0.0, 0.0
    made = np.clip(np.nan_to_num(made[finite]), wanted.min(), wanted.max())
    return float(np.square(wanted).sum()), float(np.square(made - wanted).sum())


def _db(signal: float, noise: float) -> float:
    return float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))


__all__ = ["FEEDS", "spoiled"]
