"""A random ONNX model while it is drawn: its values with their types, and its nodes.

Shapes come from the standard's own inference, so that no rule of an op is written here twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from ml_dtypes import bfloat16
from onnx import TensorProto, TypeProto, checker, helper, numpy_helper, shape_inference

from dlcc.ir.encodings import Array

FLOAT = np.dtype(np.float32)
DOUBLE = np.dtype(np.float64)
HALF = np.dtype(np.float16)
BRAIN = np.dtype(bfloat16)
BOOL = np.dtype(np.bool_)
INTS = tuple(np.dtype(t) for t in (np.int8, np.uint8, np.int32, np.int64))
RARE = (DOUBLE, HALF, *(np.dtype(t) for t in (np.int16, np.uint16, np.uint32, np.uint64)))
"""Types that are seldom computed with."""
NUMBERS = (FLOAT, *INTS)
MOST_ELEMENTS = 2048
"""Of a value: the graphs are many, and shapes are what they vary."""

OPSETS = tuple(range(7, onnx.defs.onnx_opset_version() + 1))

SUMS, HALVES, BRAINS = 1e-4, 0.02, 0.15
"""How far results may differ, in units of the largest: sums in any order of float32, and what is
rounded to 11 or 8 bits on the way, here or there."""

Draw = Callable[["Sketch"], None]
DRAWS: list[Draw] = []


class Unfit(Exception):
    """The drawn attributes give no valid node (or too large a result); another is drawn."""


@dataclass(frozen=True)
class Term:
    """A value of the model.

    Attributes:
        error: how far it may differ; 0: every correct implementation computes the same bits, so
            that ops with jumps (Floor, Less, ArgMax, ...) may take it.
        size: bound of the magnitude of its numbers, roughly.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    error: float = 0.0
    size: float = 4.0

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def exact(self) -> bool:
        return not self.error


def draw(times: int = 1) -> Callable[[Draw], Draw]:
    """Register a function that adds one op, or one of a family, to a sketch; ``times`` as often."""

    def register(function: Draw) -> Draw:
        DRAWS.extend([function] * times)
        return function

    return register


class Sketch:
    """The model so far."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = int(self.rng.choice(OPSETS))
        self.inputs: list[Term] = []
        self.feeds: dict[str, Array] = {}
        self.terms: list[Term] = []
        self.used: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self._names = 0
        self._errors: dict[str, float] = {}

    # -- chance

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def among(self, choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def integer(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, both included."""
        return int(self.rng.integers(low, high + 1))

    def shape(self, rank: int, most: int = 7) -> tuple[int, ...]:
        return tuple(self.integer(1, most) for _ in range(rank))

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """Numbers that float32 sums and products of a few keep exactly."""
        if dtype == BOOL:
            return np.asarray(self.rng.integers(0, 2, shape), np.bool_)
        if is_real(dtype):
            return np.asarray(self.rng.integers(-32, 33, shape) / 8).astype(dtype)
        low = 0 if dtype.kind == "u" else -9
        return np.asarray(self.rng.integers(low, 10, shape), dtype)

    def name(self, stem: str) -> str:
        self._names += 1
        return f"{stem}{self._names}"

    # -- values

    def input(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Term:
        term = Term(self.name("x"), dtype, shape, size=4.0 if is_real(dtype) else 9.0)
        self.inputs.append(term)
        self.terms.append(term)
        self.feeds[term.name] = self.array(dtype, shape)
        return term

    def constant(self, array: Any) -> Term:
        array = np.asarray(array)
        name = self.name("c")
        self.constants[name] = array
        size = float(np.max(np.abs(array.astype(np.float64)), initial=0.0))
        return Term(name, array.dtype, array.shape, size=size)

    def ints(self, values: Any) -> Term:
        """A constant vector (or scalar) of int64."""
        return self.constant(np.asarray(values, np.int64))

    def pick(
        self,
        dtypes: tuple[np.dtype[Any], ...] = (FLOAT,),
        ranks: tuple[int, ...] = (1, 2, 3, 4),
        *,
        exact: bool = False,
        small: float = np.inf,
        shape: tuple[int, ...] | None = None,
    ) -> Term:
        """A value so far, the newest more often than others, or a new input."""
        fit = [
            t
            for t in self.terms
            if t.dtype in dtypes
            and (t.rank in ranks if shape is None else t.shape == shape)
            and (t.exact or not exact)
            and t.size <= small
        ]
        if fit and self.chance(0.9 if len(self.inputs) > 2 else 0.75):
            return fit[-1] if self.chance(0.6) else self.among(fit)
        if shape is None:
            rank = self.among(ranks)
            shape = self.shape(rank, 7 if rank < 5 else 5)
        rare = [d for d in dtypes if d in RARE]
        common = [d for d in dtypes if d not in RARE] or rare
        return self.input(self.among(rare if rare and self.chance(0.15) else common), shape)

    def partner(self, term: Term, *, exact: bool = False, small: float = np.inf) -> Term:
        """An operand that broadcasts with ``term``: another value, an input or a constant."""
        like = [
            t
            for t in self.terms
            if t.dtype == term.dtype
            and _broadcasts(t.shape, term.shape)
            and (t.exact or not exact)
            and t.size <= small
        ]
        shape = term.shape
        if self.opset < 8:  # some ops do not broadcast yet
            like = [t for t in like if t.shape == shape]
        if like and self.chance(0.5):
            return self.among(like)
        if self.opset >= 8:
            shape = tuple(1 if self.chance(0.3) else n for n in shape)
            shape = shape[self.integer(0, len(shape)) if self.chance(0.4) else 0 :]
        if self.chance(0.5):
            return self.input(term.dtype, shape)
        return self.constant(self.array(term.dtype, shape))

    # -- nodes

    def node(
        self,
        op: str,
        operands: list[Term | None],
        *,
        outputs: int = 1,
        exact: bool = False,
        bound: float | None = None,
        types: Sequence[tuple[np.dtype[Any], tuple[int, ...]]] = (),
        **attributes: Any,
    ) -> list[Term]:
        """Add a node; its results with the types that the standard infers.

        ``exact``: the op computes the same bits everywhere from exact operands. ``bound``: of
        the results' magnitude; None: that of the largest operand. ``types`` and shapes of the
        results; none: as inferred.

        Raises:
            Unfit: this is no valid node, or its results are empty or too large.
        """
        if not onnx.defs.has(op, self.opset, ""):
            raise Unfit(op)
        names = ["" if t is None else t.name for t in operands]
        results = [self.name("v") for _ in range(outputs)]
        proto = helper.make_node(op, names, results, name=self.name(op), **attributes)
        if not types:
            inferred = self._infer(op, proto, [t for t in operands if t is not None])
            types = [_type(inferred.get(r)) for r in results]
        known = [t for t in operands if t is not None]
        size = max([t.size for t in known], default=4.0) if bound is None else bound
        if not size < 1e6:
            raise Unfit("numbers grow")
        error = max((t.error for t in known), default=0.0)
        if not exact or error:
            error = max([error, *(_rounding(dtype) for dtype, _ in types)])
        terms = [Term(r, *kind, error, size) for r, kind in zip(results, types, strict=True)]
        self.nodes.append(proto)
        self.terms += terms
        self.used.update(names)
        return terms

    def replace(self, terms: Sequence[Term], error: float) -> None:
        """Say of the newest values how far they may differ, if that is more than they say."""
        at = len(self.terms) - len(terms)
        self.terms[at:] = [replace(t, error=max(t.error, error)) for t in terms]

    def raw(self, op: str, operands: Sequence[Term | str], result: str, **attributes: Any) -> None:
        """Add a node whose result is no tensor, and has no term."""
        names = [t if isinstance(t, str) else t.name for t in operands]
        self.nodes.append(helper.make_node(op, names, [result], **attributes))
        self.used.update(names)
        errors = [self._errors.get(t, 0.0) if isinstance(t, str) else t.error for t in operands]
        self._errors[result] = max(errors)

    def of_sequence(
        self,
        op: str,
        operands: Sequence[Term | str],
        kind: tuple[np.dtype[Any], tuple[int, ...]],
        **attributes: Any,
    ) -> None:
        """Add a node that makes a tensor of what :meth:`raw` has made."""
        name = self.name("v")
        self.raw(op, operands, name, **attributes)
        size = max(t.size for t in self.terms)
        self.terms.append(Term(name, *kind, self._errors[name], size))

    def _infer(self, op: str, proto: onnx.NodeProto, operands: list[Term]) -> Any:
        schema = onnx.defs.get_schema(op, self.opset, "")
        types = {
            t.name: helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(t.dtype), t.shape)
            for t in operands
        }
        data = {
            t.name: numpy_helper.from_array(self.constants[t.name], t.name)
            for t in operands
            if t.name in self.constants
        }
        opset = [helper.make_opsetid("", self.opset)]
        context = checker.C.CheckerContext()
        context.ir_version = 10
        context.opset_imports = {"": self.opset}
        try:
            checker.check_node(proto, context)
            return shape_inference.infer_node_outputs(schema, proto, types, data, None, opset)
        except (
            checker.ValidationError,
            shape_inference.InferenceError,
            RuntimeError,
            ValueError,
        ) as error:
            raise Unfit(str(error)) from None

    def model(self) -> onnx.ModelProto:
        """The model; its results are the values that no node takes, and one more now and then."""
        inner = {t.name for t in self.inputs}
        made = [t for t in self.terms if t.name not in inner]
        results = [t for t in made if t.name not in self.used]
        extra = [t for t in made if t.name in self.used]
        if extra and self.chance(0.25):
            results.append(self.among(extra))
        graph = helper.make_graph(
            self.nodes,
            "random",
            [_info(t) for t in self.inputs if t.name in self.used],
            [_info(t) for t in results],
            [numpy_helper.from_array(a, n) for n, a in self.constants.items() if n in self.used],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        version = max(8, helper.find_min_ir_version_for(opsets))
        return helper.make_model(graph, opset_imports=opsets, ir_version=version)


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type are floating-point numbers."""
    return dtype.kind == "f" or dtype == BRAIN


def _rounding(dtype: np.dtype[Any]) -> float:
    return {HALF: HALVES, BRAIN: BRAINS}.get(dtype, SUMS)


def _broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    try:
        return int(np.prod(np.broadcast_shapes(a, b))) <= MOST_ELEMENTS
    except ValueError:
        return False


def _type(proto: TypeProto | None) -> tuple[np.dtype[Any], tuple[int, ...]]:
    if proto is None or not proto.tensor_type.HasField("shape"):
        raise Unfit("no shape inferred")
    kind = proto.tensor_type.elem_type
    if kind in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise Unfit("no type inferred")
    dims = proto.tensor_type.shape.dim
    shape = tuple(int(d.dim_value) for d in dims)
    if any(n <= 0 for n in shape) or int(np.prod(shape)) > MOST_ELEMENTS:
        raise Unfit(f"shape {shape}")
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind)), shape


def _info(term: Term) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(term.dtype)
    return helper.make_tensor_value_info(term.name, kind, term.shape)
