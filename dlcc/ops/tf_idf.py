"""TfIdfVectorizer of numbers: how often each n-gram of a pool occurs in a row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import F32, Value
from dlcc.ir.encodings import Array
from dlcc.ops.cast import cast_to
from dlcc.ops.movement import sliced
from dlcc.ops.shape import integers, reshaped

_MOST = 1 << 26
"""Comparisons of one place of an n-gram with all rows, beyond which the model is refused."""


@onnx_op("TfIdfVectorizer", since=9)
def import_tf_idf(node: OnnxNode) -> Sequence[Value]:
    """Counts of all n-grams, whose places are ``skip`` + 1 apart for every skip allowed.

    Counts are sums of equal places in float32, exact below 2^24; a product with zeros and ones puts
    them to their columns. IDF takes 1 for those that occur, TFIDF the count, times the weights.
    """
    x = node.input(0)
    if not x.type.dtype.is_integer or x.type.rank not in (1, 2):
        raise Unsupported(f"an input {x.type.dtype}{list(x.type.shape)}; rows of integers are read")
    if "pool_int64s" not in node.attrs:
        raise Unsupported("its pool holds strings")
    indexes = integers(np.asarray(node.attrs["ngram_indexes"], np.int64))
    rows = reshaped(node, x, (*([1] if x.type.rank == 1 else []), *x.type.shape), "/rows")
    parts: list[Value] = []
    columns: list[int] = []
    number = 0
    for length, grams in _pools(node):
        wanted = node.attrs["min_gram_length"] <= length <= node.attrs["max_gram_length"]
        if wanted and len(grams):
            columns += indexes[number : number + len(grams)]
            parts.append(_counts(node, rows, grams))
        number += len(grams)
    if number != len(indexes) or not parts:
        raise Unsupported(f"{len(indexes)} indices for {number} n-grams, {len(columns)} counted")
    if min(indexes) < 0 or (max(indexes) + 1) * len(columns) > _MOST:
        raise Unsupported(f"indices from {min(indexes)} to {max(indexes)}")
    width = max(indexes) + 1
    found = parts[0] if len(parts) == 1 else node.build("concat", parts, {"axis": 1})[0]
    result = _placed(node, found, columns, width)
    mode = node.attrs["mode"]
    if mode == "IDF":
        zero = node.graph.add_constant(np.asarray(0, np.float32), name="zero")
        (some,) = node.build("greater", [result, zero], suffix="/some")
        result = cast_to(node, some, F32, "/once")
    if mode != "TF" and "weights" in node.attrs:
        if indexes != tuple(range(width)):
            raise Unsupported("weights of n-grams whose columns are in another order")
        weights = np.asarray(node.attrs["weights"], np.float32)
        scale = node.graph.add_constant(weights, name="weights")
        (result,) = node.build("mul", [result, scale], suffix="/weighted")
    return [reshaped(node, result, (*x.type.shape[:-1], width), "/columns")]


def _pools(node: OnnxNode) -> list[tuple[int, Array]]:
    """(n, n-grams [count, n]) for all n."""
    pool = np.asarray(node.attrs["pool_int64s"], np.int64)
    starts = [*node.attrs["ngram_counts"], len(pool)]
    found = []
    for k, (start, end) in enumerate(pairwise(starts)):
        if not 0 <= start <= end <= len(pool) or (end - start) % (k + 1):
            raise Unsupported(f"its pool of {k + 1}-grams goes from {start} to {end}")
        found.append((k + 1, pool[start:end].reshape(-1, k + 1)))
    return found


def _counts(node: OnnxNode, rows: Value, grams: Array) -> Value:
    """How often each of ``grams`` [G, n] occurs in each of the rows: f32[B, G]."""
    batch, size = rows.type.shape
    count, length = grams.shape
    if batch * size * count > _MOST:
        raise Unsupported(f"{count} n-grams in {batch} rows of {size} are more than {_MOST}")
    dtype = rows.type.dtype.numpy
    limits = np.iinfo(dtype)
    total = node.graph.add_constant(np.zeros((batch, count), np.float32), name="none")
    skips = range(node.attrs["max_skip_count"] + 1 if length > 1 else 1)
    inside = ((grams >= limits.min) & (grams <= limits.max)).all(1)
    for skip in skips:
        places = size - (length - 1) * (skip + 1)
        if places < 1:
            break
        here = node.graph.add_constant(inside.reshape(1, -1, 1), name="inside")
        for k in range(length):
            part, start = f"/{length}.{skip}.{k}", k * (skip + 1)
            cut = sliced(node, rows, [start], [start + places], [1], [1], f"{part}.cut")
            cut = reshaped(node, cut, (batch, 1, places), f"{part}.row")
            gram = grams[:, k].astype(dtype).reshape(1, -1, 1)
            wanted = node.graph.add_constant(gram, name="gram")
            (same,) = node.build("equal", [cut, wanted], suffix=f"{part}.same")
            (here,) = node.build("and", [here, same], suffix=f"{part}.here")
        numbers = cast_to(node, here, F32, f"/{length}.{skip}.numbers")
        (sums,) = node.build(
            "reduce_sum", [numbers], {"axes": (2,)}, suffix=f"/{length}.{skip}.sums"
        )
        found = reshaped(node, sums, (batch, count), f"/{length}.{skip}.found")
        (total,) = node.build("add", [total, found], suffix=f"/{length}.{skip}.total")
    return total


def _placed(node: OnnxNode, found: Value, columns: Sequence[int], width: int) -> Value:
    """``found`` with column k at ``columns[k]`` of ``width``."""
    if list(columns) == list(range(width)):
        return found
    table = np.zeros((width, len(columns)), np.float32)
    table[list(columns), np.arange(len(columns))] = 1
    places = node.graph.add_constant(table, name="places")
    return node.build("linear", [found, places], suffix="/places")[0]
