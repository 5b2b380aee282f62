"""Which nodes become integer, which values share an encoding, and where codes meet floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from dlcc.ir import F32, Affine, Dense, Encoding, Graph, Node, Sparse, Ternary, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Quantised, op_of
from passes.names import named
from passes.quantization.recurrent import is_recurrent
from passes.quantization.recurrent import reason as recurrent_reason

LAYERS = ("conv2d", "conv_transpose2d", "linear")
"""Ops with constant weights."""

ACCUMULATING = (*LAYERS, "matmul")
"""Ops that can give a float result from an integer accumulator."""

_TAIL = ("softmax", "log_softmax", "sigmoid", "tanh", "clip", "relu")
"""Ops of a classifier head that stay float behind the last layer."""

_RECODING = ("quantize", "dequantize", "requantize", "reinterpret", "relayout")

_PARAMETERS = {"layer_norm": (1, 2), "prelu": (1,)}
"""Operands that an integer op reads as dense constants."""


def key(node: Node) -> str:
    """The name by which a node is known in copies of the graph: its first output's."""
    return node.outputs[0].name


def output_axis(node: Node) -> int:
    """Axis of a layer's weight along which its output channels lie."""
    return 1 if node.op == "conv_transpose2d" else 0


def residual_slot(node: Node) -> int | None:
    """Index of the residual operand, where the op has one."""
    operands = op_of(node).operands
    return operands.index("residual?") if "residual?" in operands else None


def is_real(value: Value) -> bool:
    """True for a dense float32 tensor."""
    return value.type.dtype == F32 and value.type.is_dense


def is_pruned(value: Value) -> bool:
    """True for sparse float32 numbers, whose zeros are to stay zeros."""
    encoding = value.type.encoding
    sparse = isinstance(encoding, Sparse) and isinstance(encoding.inner, Dense)
    return sparse and value.type.dtype == F32


def weight_codes(node: Node) -> Affine | None:
    """The signed codes of a layer's weight, if an earlier pass gave it some that kernels read."""
    weight = node.input(1)
    codes = weight.type.encoding.uniform
    if not weight.is_constant or weight.type.dtype != F32 or codes is None:
        return None
    whole = codes.signed and codes.bits <= 8 and not any(codes.zero_points)
    return codes if whole and codes.axis in (None, output_axis(node)) else None


def _encoding_reason(encoding: Encoding) -> str:
    """Why an integer layer cannot multiply weights in this encoding."""
    inner = encoding.inner if isinstance(encoding, Sparse) else encoding
    if isinstance(inner, Ternary):
        return "its ternary weights have two scales; ternarize{scales=symmetric} gives them one"
    return f"its weights are stored as {inner.name}, whose numbers share no scale"


@dataclass
class Structure:
    """Decisions of the quantisation, by name, so that they hold for every copy of the graph.

    Attributes:
        integer: keys of nodes that work on codes.
        dense_result: keys of integer layers whose result stays float.
        group: value name -> representative; values of one group share one encoding.
        refused: key -> why the node stays float.
        recurrent: keys of recurrent nodes whose weights become codes, and nothing else of them.
    """

    integer: set[str] = field(default_factory=set)
    dense_result: set[str] = field(default_factory=set)
    group: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    recurrent: set[str] = field(default_factory=set)

    def find(self, name: str) -> str:
        """Representative of a value's group."""
        root = self.group.setdefault(name, name)
        while root != self.group[root]:
            root = self.group[root]
        self.group[name] = root
        return root

    def unite(self, names: Sequence[str]) -> None:
        """Let all these values share one encoding."""
        first = self.find(names[0])
        for name in names[1:]:
            self.group[self.find(name)] = first

    def members(self) -> dict[str, list[str]]:
        """Representative -> names of its group."""
        out: dict[str, list[str]] = {}
        for name in list(self.group):
            out.setdefault(self.find(name), []).append(name)
        return out


def analyse(
    graph: Graph,
    exclude: Sequence[str],
    weight_bits: int,
    activation_bits: int,
    *,
    outputs: bool = False,
    unbounded: Collection[str] = (),
    recurrent: bool = False,
    spoiled: Mapping[str, str] | None = None,
) -> Structure:
    """Decide which nodes work on codes.

    A node does if its op has an integer form for these operands and if it is heavy or its operands
    are codes anyway. The layers at the network's outputs keep float results, unless ``outputs``.

    Args:
        graph: an optimised float graph.
        exclude: patterns (as of a shell) of ``loc`` that stay float.
        weight_bits: width of weights.
        activation_bits: width of activations.
        outputs: the network's results are codes as any other.
        unbounded: names of values that no range holds; what makes or reads them stays float.
        recurrent: recurrent weights become codes.
        spoiled: keys of nodes that rounding would spoil -> why.
    """
    out = Structure()
    tail = set() if outputs else _tail(graph)
    coded: set[Value] = {v for v in graph.inputs if is_real(v)}
    limit = _largest_sum(weight_bits, activation_bits)
    for node in graph.nodes:
        if node in tail:
            out.refused[key(node)] = "behind the last layer; the network's result stays float"
            continue
        if is_recurrent(node) and recurrent and not named(exclude, node.loc):
            reason = recurrent_reason(node)
            if not reason:
                out.recurrent.add(key(node))
                continue
        else:
            reason = (spoiled or {}).get(key(node), "") or _reason(node, exclude, limit)
            reason = reason or _unbounded(node, unbounded)
        if reason:
            if node.op not in _RECODING:
                out.refused[key(node)] = reason
            continue
        operands = [v for v in activations(node) if not v.is_constant]
        heavy = node.op in ACCUMULATING
        if not heavy and not any(v in coded for v in operands):
            out.refused[key(node)] = "all of its operands are float"
            continue
        out.integer.add(key(node))
        coded.update(v for v in node.outputs if is_real(v))
    before = -1
    while before != len(out.integer) - len(out.dense_result):
        before = len(out.integer) - len(out.dense_result)
        _keep_heads_float(graph, out, tail, outputs)
        _drop_idle(graph, out)
    for node in graph.nodes:
        if key(node) in out.integer:
            _share(out, node)
    return out


def fitted(graph: Graph, plan: Structure) -> list[int]:
    """Indices of the nodes with sums of integers."""
    return [
        i
        for i, n in enumerate(graph.nodes)
        if key(n) in plan.recurrent or (n.op in ACCUMULATING and key(n) in plan.integer)
    ]


def activations(node: Node) -> list[Value]:
    """Operands that an integer form reads as codes: float ones that are not weights or biases."""
    skip: tuple[int, ...] = (1, 2) if node.op in LAYERS else _PARAMETERS.get(node.op, ())
    return [
        v
        for i, v in enumerate(node.inputs)
        if v is not None and i not in skip and v.type.dtype.is_float
    ]


def clamp_limits(graph: Graph) -> dict[str, tuple[float, float]]:
    """Ranges of values whose layer clamps them on both sides, from its interval rule alone."""
    out = {}
    for node in graph.nodes:
        low, high = (float(node.attrs.get(k, math.inf)) for k in ("act_min", "act_max"))  # type: ignore[arg-type]
        if node.op in ACCUMULATING and math.isfinite(low) and math.isfinite(high):
            out[node.output.name] = (min(low, 0.0), max(high, 0.0))
    return out


_FLAT = ("hard_swish",)
"""Functions that are the same number over half a line. Smooth ones are left out: ranges fitted
through gelu and silu were worse for what follows (26 instead of 40 dB for a text recogniser)."""


def only_functions(graph: Graph, plan: Structure) -> dict[str, Callable[[Array], Array]]:
    """Groups whose numbers nothing but one function of a number reads: representative -> it.

    Where the function is flat, as hard swish is below -3, the group's codes need not go.
    """
    readers: dict[str, list[Node | None]] = {}
    for value in graph.values():
        if value.name not in plan.group:
            continue
        users: list[Node | None] = [
            n
            for n in value.users
            if key(n) not in plan.integer or op_of(n).quantised is not Quantised.SAME
        ]
        users += [None] if graph.is_output(value) else []
        readers.setdefault(plan.find(value.name), []).extend(users)
    out: dict[str, Callable[[Array], Array]] = {}
    for root, users in readers.items():
        first = users[0] if users else None
        if first is None or not _is_table(first, plan):
            continue
        if all(n is not None and (n.op, n.attrs) == (first.op, first.attrs) for n in users):
            out[root] = partial(_function, first)
    return out


def _is_table(node: Node, plan: Structure) -> bool:
    one = [v for v in node.inputs if v is not None]
    table = op_of(node).quantised is Quantised.TABLE and len(one) == 1
    return table and node.op in _FLAT and key(node) in plan.integer


def _function(node: Node, x: Array) -> Array:
    """The op of a node on numbers."""
    with np.errstate(all="ignore"):
        made = op_of(node).evaluate(node, [x.astype(np.float32)])[0]
    limit = float(np.finfo(np.float32).max)
    return np.nan_to_num(made.astype(np.float64), posinf=limit, neginf=-limit)


def _largest_sum(weight_bits: int, activation_bits: int) -> int:
    """Most products that surely fit an int32 accumulator, with half of it left for the bias."""
    return (1 << 30) // (((1 << activation_bits) - 1) * ((1 << (weight_bits - 1)) - 1))


def _reason(node: Node, exclude: Sequence[str], limit: int) -> str:
    """Why a node cannot work on codes, or ""."""
    if named(exclude, node.loc):
        return "excluded by option"
    op = op_of(node)
    floats = [v for v in (*node.inputs, *node.outputs) if v is not None and v.type.dtype.is_float]
    own = [node.input(1)] if node.op in LAYERS and node.input(1).is_constant else []
    if any(not v.type.is_dense for v in floats if v not in own) or node.op in _RECODING:
        return "already has operands in another encoding"
    for weight in own:
        known = weight.type.is_dense or is_pruned(weight) or weight_codes(node) is not None
        if weight.type.dtype == F32 and not known:
            return _encoding_reason(weight.type.encoding)
    if is_recurrent(node):
        return f"{node.op} multiplies its states by float weights here"
    if op.quantised is Quantised.FLOAT:
        return f"{node.op} has no integer form"
    if any(v.type.dtype != F32 for v in floats) or not floats:
        return "not on float32 numbers"
    if op.quantised is Quantised.TABLE and len(activations(node)) != 1:
        return f"{node.op} on codes is a table of one operand"
    if node.op == "resize2d" and node.attrs.get("mode", op.attributes["mode"]) != "nearest":
        return "resize2d interpolates; only nearest has an integer form"
    if node.op in LAYERS:
        return _layer_reason(node, limit)
    if node.op == "matmul":
        depth = node.input(0).type.shape[-1]
        if depth * 255 * 255 >= 1 << 30:
            return f"sums of {depth} products do not fit 32-bit accumulators"
    return ""


def _unbounded(node: Node, unbounded: Collection[str]) -> str:
    """Why the numbers that meet in a node have no range that codes could cover, or ""."""
    for value in (*activations(node), *node.outputs):
        constant = value.is_constant and not np.isfinite(value.decoded()).all()
        if constant or value.name in unbounded:
            return f"no range holds the NaN or infinite numbers of %{value.name}"
    return ""


def _layer_reason(node: Node, limit: int) -> str:
    weight, bias = node.input(1), node.optional_input(2)
    if not weight.is_constant or (bias is not None and not bias.is_constant):
        return "its weight or bias is not constant"
    arrays = [weight.decoded()] + ([] if bias is None else [bias.decoded()])
    if not all(np.isfinite(a).all() for a in arrays):
        return "its weight or bias holds NaN or infinite numbers"
    depth = weight.type.elements // max(1, weight.type.shape[output_axis(node)])
    if depth > limit and _effective_depth(node) > limit:
        return f"sums of {depth} products do not fit 32-bit accumulators"
    return ""


def _effective_depth(node: Node) -> float:
    """Largest sum |w| of an output channel over its largest |w|: full-size products in a sum."""
    rows = np.abs(np.moveaxis(node.input(1).decoded(), output_axis(node), 0).astype(np.float64))
    rows = rows.reshape(rows.shape[0], -1)
    peaks = np.maximum(rows.max(axis=1, initial=0.0), 1e-300)
    return float((rows.sum(axis=1) / peaks).max(initial=0.0)) * 1.01


def _share(out: Structure, node: Node) -> None:
    """Enter the node's values; ops that only move numbers share one encoding among them."""
    results = [] if key(node) in out.dense_result else node.outputs
    values = [v for v in (*activations(node), *results) if v.type.dtype.is_float]
    for value in values:
        if not value.is_constant:
            out.find(value.name)
    if op_of(node).quantised is Quantised.SAME or node.op == "resize2d":
        names = [v.name for v in values if not v.is_constant]
        if names:
            out.unite(names)


def _tail(graph: Graph) -> set[Node]:
    """Nodes between the last layers and the outputs that only move or squash the result."""
    tail: set[Node] = set()
    for node in reversed(graph.nodes):
        if not _squashes(node) or node.op in ("concat", "max_pool2d", "reduce_max", "reduce_min"):
            continue
        users_in_tail = all(user in tail for v in node.outputs for user in v.users)
        leads_out = any(graph.is_output(v) or v.users for v in node.outputs)
        if users_in_tail and leads_out:
            tail.add(node)
    return tail & _behind_layers(graph)


def _squashes(node: Node) -> bool:
    return node.op in _TAIL or op_of(node).quantised is Quantised.SAME


def _behind_layers(graph: Graph) -> set[Node]:
    """Nodes to which a chain of such nodes leads from a layer that can give a float result."""
    found: set[Node] = set()
    for node in graph.nodes:
        source = node.input(0).producer if _squashes(node) else None
        if source is not None and (source.op in ACCUMULATING or source in found):
            found.add(node)
    return found


def _keep_heads_float(graph: Graph, out: Structure, tail: set[Node], outputs: bool) -> None:
    for node in graph.nodes:
        if node.op not in ACCUMULATING or key(node) not in out.integer:
            continue
        if outputs and graph.is_output(node.output):
            continue
        slot = residual_slot(node)
        if slot is not None and node.optional_input(slot) is not None:
            continue  # what is added as codes is added to codes
        users = node.output.users
        used = bool(users) or graph.is_output(node.output)
        if used and all(user in tail or _is_float(user, out) for user in users):
            out.dense_result.add(key(node))


def _is_float(node: Node, out: Structure) -> bool:
    return key(node) not in out.integer


def _drop_idle(graph: Graph, out: Structure) -> None:
    """Movement and pointwise nodes whose only integer neighbours turned float stay float too."""
    for node in graph.nodes:
        if key(node) not in out.integer or node.op in ACCUMULATING:
            continue
        sources = [v for v in activations(node) if not v.is_constant]
        integer = any(
            v.producer is None
            or (key(v.producer) in out.integer and key(v.producer) not in out.dense_result)
            for v in sources
        )
        if not integer:
            out.integer.discard(key(node))
            out.refused[key(node)] = "all of its operands are float"
