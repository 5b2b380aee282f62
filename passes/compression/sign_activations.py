"""Signs in the place of a layer's input: which inputs, what they stand for, the graph's edits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import AttrValue, Binary, Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import build, op_of
from passes.compression.sign_sources import SignSource, erase_unused, packed, sign_source
from passes.quantization.samples import read


@dataclass
class Observed:
    """What an input holds on the calibration data: sums over all numbers."""

    total: float = 0.0
    squares: float = 0.0
    count: int = 0
    least: float = math.inf

    @property
    def mean(self) -> float:
        """Mean |x|."""
        return self.total / max(1, self.count)

    def error(self, scale: float) -> float:
        """Norm of x - scale * sign(x) over the norm of x."""
        left = self.squares - 2 * scale * self.total + scale * scale * self.count
        return math.sqrt(max(0.0, left) / self.squares) if self.squares else 0.0


@dataclass(frozen=True)
class RealInputs:
    """Names of layer inputs that hold more than signs."""

    names: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.names)

    def observed(
        self, graph: Graph, batches: Iterable[Mapping[str, Array]], wanted: int
    ) -> dict[str, Observed]:
        """Statistics by name, on at most ``wanted`` samples.

        Raises:
            DlccError: the samples are none or do not fit, or an input is not finite on them.
        """
        found = {name: Observed() for name in self.names}

        def see(value: Value, array: Array) -> None:
            if value.name not in found:
                return
            if not np.isfinite(array).all():
                raise DlccError(
                    ExitCode.DATA,
                    "an activation is not finite",
                    where=f"%{value.name}",
                    why="the network gives NaN or infinite numbers for the calibration data",
                    fix="check that the data is preprocessed as the network expects",
                )
            one = found[value.name]
            one.total += float(np.abs(array).sum(dtype=np.float64))
            one.squares += float(np.square(array, dtype=np.float64).sum())
            one.count += array.size
            one.least = min(one.least, float(array.min(initial=math.inf)))

        samples = read(graph, batches, wanted)
        for feed in samples.chunks():
            execute(samples.network, feed, see)
        return found


def real_inputs(nodes: Sequence[Node]) -> RealInputs:
    """Inputs of those layers that could read signs, where they hold other numbers."""
    names = [n.input(0).name for n in nodes if not _refusal(n) and not sign_source(n.input(0))]
    return RealInputs(tuple(dict.fromkeys(names)))


def _refusal(node: Node) -> str:
    """Why a layer cannot read signs, or ""."""
    if node.op == "conv_transpose2d":
        return "no kernel of a transposed convolution reads signs"
    if node.input(0).type.is_binary:
        return "its input is binary already"
    if not isinstance(node.input(1).type.encoding, Binary):
        return "its weights are not binary; run binarize before this pass"
    reals = (node.input(0), node.optional_input(2), node.optional_input(3), node.output)
    if any(v is not None and (not v.type.is_dense or str(v.type.dtype) != "f32") for v in reals):
        return "its operands are not float32"
    return "" if sign_source(node.input(0)) else _never_negative(node.input(0))


def _never_negative(value: Value) -> str:
    node = value.producer
    while node is not None and node.op in ("max_pool2d", "avg_pool2d", "reshape", "transpose"):
        node = node.input(0).producer
    if node is None:
        return ""
    op, limits = op_of(node), {"clip": "min"}
    key = limits.get(node.op, "act_min")
    clamped = key in op.attributes and float(op.get(node, key)) >= 0
    if clamped or node.op in ("relu", "sigmoid", "softmax", "abs", "hard_sigmoid"):
        return f"its input is never negative ({node.op} {node.loc!r}): all signs would be equal"
    return ""


@dataclass
class Signs:
    """Edits a graph layer by layer.

    Attributes:
        scale: ``tensor``, ``one`` or ``pixel``.
        seen: statistics of inputs by name, or None.
        errors: of the inputs that lost more than their scale, as relative norms.
    """

    graph: Graph
    scale: str
    seen: dict[str, Observed] | None
    errors: list[float] = field(default_factory=list)
    _made: dict[tuple[Value, float], Value] = field(default_factory=dict)

    def apply(self, node: Node) -> str:
        """Let a layer read signs; returns what was done.

        Raises:
            ValueError: why it cannot.
        """
        why = _refusal(node)
        if why:
            raise ValueError(why)
        x = node.input(0)
        source = sign_source(x)
        if source is not None:
            words = f"its input holds signs{': ' + source.note if source.note else ''}"
        else:
            source, words = self._source(x)
        pixel = self.scale == "pixel" and source.value is x
        signs = self._signs(node, x, source)
        node.set_input(0, signs)
        if pixel:
            _scale_pixels(self.graph, node, x)
        erase_unused(self.graph, x)
        layout = "nhwc" if node.op == "conv2d" else ""  # as the layer's kernels read it
        after = signs.type.with_(layout=layout).bytes
        return f"{words}, {x.type.bytes} -> {after} bytes of activations"

    def _source(self, x: Value) -> tuple[SignSource, str]:
        """Signs of any numbers."""
        seen = None if self.seen is None else self.seen[x.name]
        if seen is not None and (not seen.squares or seen.least >= 0):
            raise ValueError("its input is never negative on the calibration data")
        scale = seen.mean if seen is not None and self.scale == "tensor" else 1.0
        words = {"pixel": "signs, a scale per pixel"}.get(self.scale, f"signs of {scale:.4g}")
        if seen is not None and self.scale != "pixel":
            self.errors.append(seen.error(scale))
            words += f", activation error {self.errors[-1]:.3g}"
        return SignSource(x, scale), words

    def _signs(self, node: Node, x: Value, source: SignSource) -> Value:
        """The binary activation of a source, one for all its readers."""
        if source.value.type.is_binary:
            return source.value
        key = (x, source.scale)
        if key not in self._made:
            self._made[key] = packed(self.graph, source, node.loc)
        return self._made[key]


def _scale_pixels(graph: Graph, node: Node, x: Value) -> None:
    """Multiply the layer's sums by the mean |x| of their windows (XNOR-Net, eq. 11)."""

    def op(name: str, *operands: Value, **attrs: AttrValue) -> Value:
        made = build(graph, name, operands, attrs, loc=f"{node.loc}.{name}", before=node)
        return made.output

    get, is_conv = op_of(node).get, node.op == "conv2d"
    channels = 1 if is_conv else x.type.rank - 1
    scale = op("reduce_mean", op("abs", x), axes=(channels,), keepdims=True)
    if is_conv:
        kernel = node.input(1).type.shape[2:]
        box = np.full((1, 1, *kernel), 1 / math.prod(kernel), np.float32)
        geometry = {key: get(node, key) for key in ("strides", "dilations", "pads")}
        scale = op("conv2d", scale, graph.add_constant(box, name="window"), **geometry)
    bare = {k: v for k, v in node.attrs.items() if k not in ("act_min", "act_max")}
    sums = build(
        graph, node.op, [node.input(0), node.input(1)], bare, loc=node.loc, before=node
    ).output
    result = op("mul", sums, scale)
    bias, residual = node.optional_input(2), node.optional_input(3)
    if bias is not None:
        shape = (-1, 1, 1) if is_conv else (-1,)
        vector = graph.add_constant(bias.decoded().reshape(shape), name=bias.name)
        result = op("add", result, vector)
    if residual is not None:
        result = op("add", result, residual)
    low, high = float(get(node, "act_min")), float(get(node, "act_max"))
    if (low, high) != (-math.inf, math.inf):
        result = op("clip", result, min=low, max=high)
    graph.replace_all_uses(node.output, result)
    graph.erase(node)


__all__ = ["Observed", "RealInputs", "Signs", "real_inputs"]
