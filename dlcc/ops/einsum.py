"""Einsum and Hardmax, imported as the ops they are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import Value
from dlcc.ops.shape import axis_of, reshaped
from dlcc.ops.weights import reshape_value


class _Term:
    """An operand whose axes have letters."""

    def __init__(self, value: Value, letters: str) -> None:
        self.value = value
        self.letters = letters

    def size(self, letter: str) -> int:
        """Extent of an axis."""
        return self.value.type.shape[self.letters.index(letter)]


class _Einsum:
    """One Einsum node being taken apart; every IR node it makes gets a numbered name."""

    def __init__(self, node: OnnxNode) -> None:
        self.node = node
        self.count = 0

    def _build(self, op: str, inputs: Sequence[Value], **attrs: object) -> Value:
        self.count += 1
        suffix = f"/{op}{self.count}"
        return self.node.build(op, inputs, attrs, suffix=suffix)[0]  # type: ignore[arg-type]

    def ordered(self, term: _Term, letters: str) -> _Term:
        """The term with its axes in the order of ``letters`` (a permutation of its own)."""
        if term.letters == letters:
            return term
        perm = tuple(term.letters.index(c) for c in letters)
        return _Term(self._build("transpose", [term.value], perm=perm), letters)

    def shaped(self, value: Value, shape: Sequence[int]) -> Value:
        """The value in another shape."""
        self.count += 1
        return reshaped(self.node, value, shape, f"/reshape{self.count}")

    def without(self, term: _Term, kept: set[str]) -> _Term:
        """Sums over the axes that nobody else needs."""
        axes = tuple(k for k, c in enumerate(term.letters) if c not in kept)
        if not axes:
            return term
        value = self._build("reduce_sum", [term.value], axes=axes, keepdims=False)
        return _Term(value, "".join(c for c in term.letters if c in kept))

    def diagonal(self, term: _Term) -> _Term:
        """The term with each letter once: a repeated one walks along the diagonal of its axes."""
        for letter in sorted(c for c in set(term.letters) if term.letters.count(c) > 1):
            rest = [k for k, c in enumerate(term.letters) if c != letter]
            same = [k for k, c in enumerate(term.letters) if c == letter]
            shape, size = term.value.type.shape, term.size(letter)
            value = self._build("transpose", [term.value], perm=(*rest, *same))
            value = self.shaped(value, (*(shape[k] for k in rest), size ** len(same)))
            ends, step = (size ** len(same),), sum(size**k for k in range(len(same)))
            places = {"starts": (0,), "ends": ends, "axes": (len(rest),), "steps": (step,)}
            value = self._build("slice", [value], **places)
            term = _Term(value, "".join(term.letters[k] for k in rest) + letter)
        return term

    def squeezed(self, term: _Term, sizes: Mapping[str, int]) -> _Term:
        """The term without the axes of one number that other operands repeat it along."""
        gone = [k for k, c in enumerate(term.letters) if term.size(c) < sizes[c]]
        if not gone:
            return term
        kept = [k for k in range(len(term.letters)) if k not in gone]
        value = self.shaped(term.value, [term.value.type.shape[k] for k in kept])
        return _Term(value, "".join(term.letters[k] for k in kept))

    def product(self, a: _Term, b: _Term, kept: set[str]) -> _Term:
        """The product of two terms, summed over the common letters that are not ``kept``."""
        a = self.without(a, kept | set(b.letters))
        b = self.without(b, kept | set(a.letters))
        both = [c for c in a.letters if c in b.letters]
        batch = "".join(c for c in both if c in kept)
        summed = "".join(c for c in both if c not in kept)
        rows = "".join(c for c in a.letters if c not in b.letters)
        columns = "".join(c for c in b.letters if c not in a.letters)
        sizes = {c: t.size(c) for t in (a, b) for c in t.letters}

        def extent(letters: str) -> int:
            return math.prod(sizes[c] for c in letters)

        lead = tuple(sizes[c] for c in batch)
        left = self.ordered(a, batch + rows + summed).value
        right = self.ordered(b, batch + summed + columns).value
        left = self.shaped(left, (*lead, extent(rows), extent(summed)))
        right = self.shaped(right, (*lead, extent(summed), extent(columns)))
        product = self._build("matmul", [left, right])
        letters = batch + rows + columns
        return _Term(self.shaped(product, [sizes[c] for c in letters]), letters)


def _parsed(equation: str, values: Sequence[Value]) -> tuple[list[str], str]:
    """Letters of the operands and of the result; an ellipsis becomes capital letters of its own.

    Raises:
        Unsupported: the equation does not fit.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    used = set(equation)
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in used]
    deepest = 0
    for k, (term, value) in enumerate(zip(terms, values, strict=True)):
        if "..." in term:
            depth = value.type.rank - (len(term) - 3)
            deepest = max(deepest, depth)
            terms[k] = term.replace("...", "".join(spare[:depth][::-1]))
        if len(terms[k]) != value.type.rank:
            raise Unsupported(f"equation {equation!r}: term {term!r} for {value.type.rank} axes")
    ellipsis = "".join(spare[:deepest][::-1])
    if not arrow:
        once = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    return terms, right.replace("...", ellipsis)


@onnx_op("Einsum", since=12)
def _einsum(node: OnnxNode) -> Sequence[Value]:
    values = [node.input(k) for k in range(len(node.inputs))]
    equation = str(node.attrs["equation"])
    if len(equation.partition("->")[0].split(",")) != len(values):
        raise Unsupported(f"equation {equation!r} for {len(values)} operands")
    terms, result = _parsed(equation, values)
    sizes: dict[str, int] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, size in zip(term, value.type.shape, strict=True):
            known = sizes.get(letter, 1)
            if 1 not in (size, known) and size != known:
                raise Unsupported(f"equation {equation!r}: axes {letter!r} of {known} and {size}")
            if (
                term.count(letter) > 1
                and len({value.type.shape[k] for k, c in enumerate(term) if c == letter}) > 1
            ):
                raise Unsupported(f"equation {equation!r}: a diagonal of unequal axes")
            sizes[letter] = known if size == 1 else size
    work = _Einsum(node)
    each = [
        work.squeezed(work.diagonal(_Term(v, t)), sizes) for v, t in zip(values, terms, strict=True)
    ]
    total = each[0]
    for k in range(1, len(values)):
        later = set(result).union(*(t.letters for t in each[k + 1 :]))
        total = work.product(total, each[k], later)
    total = work.ordered(work.without(total, set(result)), result)
    return [total.value]


@onnx_op("Hardmax")
def _flat_hardmax(node: OnnxNode) -> Sequence[Value]:
    """Hardmax before opset 13: over all axes from ``axis`` (default 1) on, taken as one."""
    x = node.input(0)
    first = axis_of(node.attrs.get("axis", 1), x.type.rank)
    rows = math.prod(x.type.shape[:first]), math.prod(x.type.shape[first:])
    made = _largest(node, reshape_value(node, x, rows, ".rows"), 1)
    return [reshape_value(node, made[0], x.type.shape, ".shape")]


@onnx_op("Hardmax", since=13)
def _hardmax(node: OnnxNode) -> Sequence[Value]:
    x = node.input(0)
    return _largest(node, x, axis_of(node.attrs.get("axis", -1), x.type.rank))


def _largest(node: OnnxNode, x: Value, axis: int) -> Sequence[Value]:
    """1 where the first largest number along ``axis`` stands, else 0."""
    (places,) = node.build("argmax", [x], {"axis": axis, "keepdims": False}, suffix="/argmax")
    values = node.graph.add_constant(np.array([0, 1], x.type.dtype.numpy), name="off_on")
    return node.build("one_hot", [places, values], {"axis": axis, "depth": x.type.shape[axis]})
