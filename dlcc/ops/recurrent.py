"""Recurrent layers: LSTM, GRU and the plain RNN, after their input projection.

What a recurrent layer does with its input is one product for all time steps, a layer of its own
(``linear``), which passes compress and targets compute as any other. What is left is here: the
steps, each of which multiplies the state before it. Shapes: T steps, B sequences, H units;
``gates`` are the projections, biases included, [T,B,G*H]; ``recurrent`` is [G*H,H], both with the
gates in ONNX's order. A sequence shorter than T has its length in ``lengths``: what lies behind is
not read, and is 0 in the results; going backward starts at its end. Lengths outside 0..T count as
the nearer end.

Recurrent weights may be codes (:mod:`dlcc.ops.recurrent_codes`): then states become codes too
before they are multiplied, and all else stays float32.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from dlcc.ir import F32, I32, Affine, Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.ops import recurrent_codes
from dlcc.ops.base import OPS, Interval, Op, Quantised, type_error
from dlcc.ops.integer import float_dtype

_INF = float("inf")

Given = Mapping[str, Array]
"""Operands that are there, by name."""

ACTIVATIONS: Mapping[str, tuple[float | None, float | None]] = {
    "relu": (None, None),
    "tanh": (None, None),
    "sigmoid": (None, None),
    "affine": (1.0, 0.0),
    "leaky_relu": (0.01, None),
    "thresholded_relu": (1.0, None),
    "scaled_tanh": (1.0, 1.0),
    "hard_sigmoid": (0.2, 0.5),
    "elu": (1.0, None),
    "softsign": (None, None),
    "softplus": (None, None),
}
"""Functions of gates and states, with ONNX's defaults of alpha and beta; None: it has none.

All but ``affine`` (alpha * x + beta) and ``scaled_tanh`` (alpha * tanh(beta * x)) are ops.
"""

_RANGES = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "hard_sigmoid": (0.0, 1.0),
           "softsign": (-1.0, 1.0), "relu": (0.0, _INF), "softplus": (0.0, _INF)}  # fmt: skip


@dataclass(frozen=True)
class Activation:
    """One of :data:`ACTIVATIONS` with its parameters."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def _node(self) -> Node:
        given = {"alpha": self.alpha, "beta": self.beta}
        return Node(self.name, {k: given[k] for k in OPS[self.name].attributes if k in given}, "")

    def of(self, x: Array) -> Array:
        """On an array, in its precision."""
        kind = x.dtype.type
        if self.name == "affine":
            return np.asarray(x * kind(self.alpha) + kind(self.beta))
        if self.name == "scaled_tanh":
            return np.asarray(np.tanh(x * kind(self.beta)) * kind(self.alpha))
        op: Any = OPS[self.name]
        return np.asarray(op.function(self._node(), x))

    def expression(self, x: Any, names: Any) -> Any:
        """On a TIR expression of float32, a vector or not; ``names`` as of ``dlcc.tir.math``."""
        from dlcc.tir import expr
        from dlcc.tir import math as tir_math

        alpha, beta, one = (expr.like(v, x) for v in (self.alpha, self.beta, 1))
        x = names(x)
        if self.name in ("tanh", "sigmoid"):
            return getattr(tir_math, self.name)(x, names)
        if self.name == "affine":
            return x * alpha + beta
        if self.name == "scaled_tanh":
            return tir_math.tanh(x * beta, names) * alpha
        if self.name == "elu":
            return expr.select(x > 0, x, (tir_math.exp(x, names) - one) * alpha)
        if self.name == "softplus":
            small = tir_math.exp(expr.negative(expr.absolute(x)), names)
            return expr.maximum(x, expr.like(0, x)) + tir_math.log(one + small, names)
        op: Any = OPS[self.name]
        return op.expression(self._node(), x)

    def exact(self, of: recurrent_codes.Floats, x: Any) -> Any:
        """As layers with coded weights have it: the same bytes everywhere."""
        return recurrent_codes.FUNCTIONS[self.name](of, x, self.alpha, self.beta)


class Recurrent(Op):
    """Base of the three: steps over time, from arrays of states to arrays of states.

    Attributes:
        gates: G, gates of a unit.
        functions: the usual activations.
        states: results after the first one, which is the first state of every step.
    """

    quantised = Quantised.WEIGHTS
    gates: ClassVar[int] = 0
    functions: ClassVar[tuple[str, ...]] = ()
    states: ClassVar[int] = 1

    def place(self, name: str) -> int:
        """Index of the operand called ``name``."""
        return [o.rstrip("?") for o in self.operands].index(name)

    def activations_of(self, node: Node) -> tuple[Activation, ...]:
        """The activations with their parameters."""
        names = self.get(node, "activations")
        alphas, betas = (self.get(node, k) or (0.0,) * len(names) for k in ("alpha", "beta"))
        return tuple(Activation(*one) for one in zip(names, alphas, betas, strict=True))

    def functions_of(self, node: Node) -> list[Callable[[Array], Array]]:
        """The activations, of arrays."""
        of, known = recurrent_codes.NumpyFloats(), self.activations_of(node)
        coded = weight_codes(node) is not None
        return [partial(f.exact, of) if coded else f.of for f in known]

    def sizes(self, node: Node) -> tuple[int, int, int]:
        """T, B and H."""
        steps, batch, width = node.input(0).type.shape
        return steps, batch, width // self.gates

    def expected(self, node: Node) -> dict[str, tuple[int, ...]]:
        """Shapes of the operands after the first."""
        _, batch, units = self.sizes(node)
        return {
            "recurrent": (self.gates * units, units), "bias": (units,), "h0": (batch, units),
            "c0": (batch, units), "peephole": (3 * units,), "lengths": (batch,),
            "products": (1, batch, self.gates * units),
        }  # fmt: skip

    def infer(self, node: Node) -> list[TensorType]:
        """[T,B,G*H] -> [T,B,H], and [B,H] for each state."""
        gates = node.input(0).type
        if gates.rank != 3 or gates.shape[2] % self.gates or not gates.shape[2]:
            raise type_error(node, f"the gates must be [T,B,{self.gates}*H]")
        steps, batch, units = self.sizes(node)
        shapes = self.expected(node)
        for name, value in zip(self.operands[1:], node.inputs[1:], strict=False):
            stem = name.rstrip("?")
            if value is not None and value.type.shape != shapes[stem]:
                raise type_error(node, f"{stem} must be {list(shapes[stem])}")
            if value is not None and stem == "lengths" and value.type.dtype != I32:
                raise type_error(node, "lengths must be i32")
        names = self.get(node, "activations")
        if len(names) != len(self.functions) or not set(names) <= set(ACTIVATIONS):
            raise type_error(node, f"{names} are no {len(self.functions)} activations")
        self.check(node)
        state = TensorType((batch, units), gates.dtype)
        return [TensorType((steps, batch, units), gates.dtype), *[state] * self.states]

    def check(self, node: Node) -> None:
        """What else must hold; raises DlccError."""
        given = [node.optional_input(self.place(n)) for n in ("recurrent", "products", "lengths")]
        recurrent, products, lengths = (value is not None for value in given)
        if not recurrent and (node.input(0).type.shape[0] != 1 or lengths):
            raise type_error(node, "without recurrent weights there is one step of all sequences")
        if recurrent and products:
            raise type_error(node, "products stand in place of recurrent weights")
        why = "" if weight_codes(node) is None else codes_refusal(node)
        if why:
            raise type_error(node, why)

    def products(self, xs: Given, h: Array) -> Array:
        """``h @ recurrent.T``, or what stands in its place."""
        if "scales" in xs:
            return recurrent_codes.products(h, xs["recurrent"], xs["scales"])
        if "recurrent" in xs:
            return np.asarray(h @ xs["recurrent"].T)
        size = xs["gates"].shape[2]
        return xs["products"][0] if "products" in xs else np.zeros((len(h), size), h.dtype)

    @abstractmethod
    def step(
        self, node: Node, xs: Mapping[str, Array], x: Array, states: list[Array]
    ) -> list[Array]:
        """The states after one step of some sequences: x [b,G*H], states [b,H]."""

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """One step after the other, in float32 (float64 for float64 operands)."""
        names = [o.rstrip("?") for o in self.operands]
        given = {k: v for k, v in zip(names, xs, strict=False) if v is not None}
        dtype = float_dtype(*xs)
        given = {k: v if k == "lengths" else v.astype(dtype, copy=False) for k, v in given.items()}
        codes = weight_codes(node)
        if codes is not None:
            width = given["recurrent"].shape[0]
            given["scales"] = recurrent_codes.multipliers(codes, width)
        steps, batch, units = self.sizes(node)
        zero = np.zeros((batch, units), dtype)
        states = [given.get(name, zero).copy() for name in ("h0", "c0")[: self.states]]
        lengths = np.clip(given.get("lengths", np.full(batch, steps)), 0, steps)
        y = np.zeros((steps, batch, units), dtype)
        order = range(steps - 1, -1, -1) if self.get(node, "reverse") else range(steps)
        for t in order:
            rows = np.flatnonzero(t < lengths)
            new = self.step(node, given, given["gates"][t, rows], [s[rows] for s in states])
            for state, part in zip(states, new, strict=True):
                state[rows] = part
            y[t, rows] = new[0]
        for state in states:
            state[lengths == 0] = 0
        kind = node.input(0).type.dtype.numpy
        return [part.astype(kind) for part in (y, *states)]

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """The same; the recurrent weights are codes."""
        return self.evaluate(node, xs)

    def clipped(self, node: Node, x: Array) -> Array:
        """``x`` within the attribute ``clip``."""
        limit = float(self.get(node, "clip"))
        return x if limit == _INF else np.clip(x, x.dtype.type(-limit), x.dtype.type(limit))

    def macs(self, node: Node) -> int:
        """Products of states and recurrent weights."""
        steps, batch, units = self.sizes(node)
        return 0 if node.optional_input(1) is None else steps * batch * self.gates * units**2

    def hull(self, node: Node, xs: Sequence[Interval | None], inner: Interval) -> Interval:
        """``inner``, 0 and the initial state."""
        place = self.place("h0")
        first = xs[place] if place < len(xs) else None
        made = inner.union(Interval(0.0, 0.0))
        return made if first is None else made.union(first)


def weight_codes(node: Node) -> Affine | None:
    """The encoding of recurrent weights that are multiplied as integers; None for float ones."""
    value = node.optional_input(1)
    encoding = None if value is None or not value.is_constant else value.type.encoding
    return encoding if isinstance(encoding, Affine) else None


def codes_refusal(node: Node) -> str:
    """Why the recurrent weights of a node cannot be codes that kernels multiply, or ""."""
    op = OPS[node.op]
    value = node.optional_input(1)
    assert isinstance(op, Recurrent)
    if value is None:
        return "it has no recurrent weights"
    if not value.is_constant or value.type.dtype != F32 or node.input(0).type.dtype != F32:
        return "its recurrent weights are no constant float32 numbers"
    names = {f.name for f in op.activations_of(node)}
    wide = sorted(names - set(recurrent_codes.FUNCTIONS))
    if wide:
        return f"its states pass through {wide[0]}, which has no bounds or no integer-exact form"
    codes = weight_codes(node)
    if codes is not None:
        whole = codes.signed and codes.bits <= 8 and not any(codes.zero_points)
        if not whole or codes.axis not in (None, 0):
            return "coded recurrent weights are signed, of at most 8 bits, one scale for each row"
    if value.type.shape[1] * 128 * recurrent_codes.STEPS >= 1 << 31:
        return f"sums of {value.type.shape[1]} products do not fit 32-bit accumulators"
    return ""


_ATTRIBUTES: Mapping[str, Any] = {"alpha": (), "beta": (), "clip": _INF, "reverse": False}


class Lstm(Recurrent):
    """lstm(gates, recurrent?, h0?, c0?, peephole?, lengths?, products?): y, last h, last c.

    Gates i, o, f, c. With x' = x + recurrent @ h of each gate, p the peephole weights of i, o and
    f, and activations f, g, k: i = f(x'_i + p_i c), f = f(x'_f + p_f c) (1 - i with
    ``input_forget``), c' = f c + i g(x'_c), o = f(x'_o + p_o c'), h' = o k(c'). Arguments of f and
    g are cut to [-clip, clip]. Hochreiter and Schmidhuber 1997; peepholes: Gers and Schmidhuber
    2000.
    """

    name = "lstm"
    operands = ("gates", "recurrent?", "h0?", "c0?", "peephole?", "lengths?", "products?")
    attributes: ClassVar[Mapping[str, Any]] = {
        "activations": ("sigmoid", "tanh", "tanh"), "input_forget": False, **_ATTRIBUTES,
    }  # fmt: skip
    gates = 4
    functions = ("sigmoid", "tanh", "tanh")
    states = 2

    def step(
        self, node: Node, xs: Mapping[str, Array], x: Array, states: list[Array]
    ) -> list[Array]:
        """As in the class's docstring."""
        h, c = states
        f, g, k = self.functions_of(node)
        x = x + self.products(xs, h)
        i, o, forget, cell = np.split(x, 4, axis=1)
        peeps = np.split(xs["peephole"], 3) if "peephole" in xs else (c.dtype.type(0),) * 3
        i = f(self.clipped(node, i + peeps[0] * c))
        forget = f(self.clipped(node, forget + peeps[2] * c))
        if self.get(node, "input_forget"):
            forget = 1 - i
        c = forget * c + i * g(self.clipped(node, cell))
        o = f(self.clipped(node, o + peeps[1] * c))
        return [o * k(c), c]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """A product of two bounded numbers; the cell is not bounded."""
        f, _, k = self.get(node, "activations")
        unknown = Interval(-_INF, _INF)
        h = unknown
        if f in _RANGES and k in _RANGES and _RANGES[f] == (0.0, 1.0):
            h = Interval(*_RANGES[k])
        return [self.hull(node, xs, h)] * 2 + [unknown]


class Gru(Recurrent):
    """gru(gates, recurrent?, bias?, h0?, lengths?, products?): y, last h.

    Gates z, r, h. With activations f and g: z = f(x_z + R_z h), r = f(x_r + R_r h), n = g(x_h + R_h
    (r h)), or with ``reset_after`` n = g(x_h + r (R_h h + bias)); h' = (1 - z) n + z h. Arguments
    are cut to [-clip, clip]. ``products`` are for ``reset_after`` alone. Cho et al. 2014; the
    variant is that of cuDNN.
    """

    name = "gru"
    operands = ("gates", "recurrent?", "bias?", "h0?", "lengths?", "products?")
    attributes: ClassVar[Mapping[str, Any]] = {
        "activations": ("sigmoid", "tanh"), "reset_after": False, **_ATTRIBUTES,
    }  # fmt: skip
    gates = 3
    functions = ("sigmoid", "tanh")

    def check(self, node: Node) -> None:
        """A bias of its own is for products that the reset gate scales."""
        super().check(node)
        if node.optional_input(2) is not None and not self.get(node, "reset_after"):
            raise type_error(node, "the bias belongs to reset_after")
        if node.optional_input(5) is not None and not self.get(node, "reset_after"):
            raise type_error(node, "products belong to reset_after")

    def step(
        self, node: Node, xs: Mapping[str, Array], x: Array, states: list[Array]
    ) -> list[Array]:
        """As in the class's docstring."""
        (h,) = states
        f, g = self.functions_of(node)
        cut = 2 * h.shape[1]
        products = self.products(xs, h)
        z, r = np.split(f(self.clipped(node, x[:, :cut] + products[:, :cut])), 2, axis=1)
        if self.get(node, "reset_after"):
            product = r * (products[:, cut:] + xs.get("bias", h.dtype.type(0)))
        else:
            after = {k: v[cut:] if k in ("recurrent", "scales") else v for k, v in xs.items()}
            product = self.products(after, r * h)[:, -h.shape[1] :]
        n = g(self.clipped(node, x[:, cut:] + product))
        return [(1 - z) * n + z * h]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Between the candidates and the state before, where z is in [0, 1]."""
        f, g = self.get(node, "activations")
        h = Interval(-_INF, _INF)
        if _RANGES.get(f) == (0.0, 1.0) and g in _RANGES:
            h = Interval(*_RANGES[g])
        return [self.hull(node, xs, h)] * 2


class Rnn(Recurrent):
    """rnn(gates, recurrent?, h0?, lengths?, products?): y, last h; h' = f(x + R h). Elman 1990.

    Arguments of f are cut to [-clip, clip].
    """

    name = "rnn"
    operands = ("gates", "recurrent?", "h0?", "lengths?", "products?")
    attributes: ClassVar[Mapping[str, Any]] = {"activations": ("tanh",), **_ATTRIBUTES}
    gates = 1
    functions = ("tanh",)

    def step(
        self, node: Node, xs: Mapping[str, Array], x: Array, states: list[Array]
    ) -> list[Array]:
        """As in the class's docstring."""
        (f,) = self.functions_of(node)
        return [f(self.clipped(node, x + self.products(xs, states[0])))]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """The range of the activation."""
        (f,) = self.get(node, "activations")
        return [self.hull(node, xs, Interval(*_RANGES.get(f, (-_INF, _INF))))] * 2
