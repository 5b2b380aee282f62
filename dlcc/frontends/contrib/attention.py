"""Attention of ``com.microsoft``, of one head and of many, with caches, masks and rotations.

All of them are projections, heads, scores, a softmax and a weighted sum; what differs is how
operands are packed and which keys a query may see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlcc.frontends.contrib.body import DOMAIN, Body, real, refuse_if, whole
from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import I64, Value
from dlcc.ops.cast import cast_to

_LOWEST = float(np.finfo(np.float32).min)
"""What is added to the score of a key that must not be seen."""


@dataclass(frozen=True)
class Heads:
    """Queries [B,N,S,H], keys [B,N,T,H] and values [B,N,T,V] of all heads."""

    q: Value
    k: Value
    v: Value

    @property
    def places(self) -> tuple[int, int]:
        """Number of queries and of keys."""
        return self.q.type.shape[2], self.k.type.shape[2]


def split_heads(body: Body, x: Value, count: int, part: str) -> Value:
    """[B,S,N*H] as [B,N,S,H]."""
    batch, length, width = x.type.shape
    refuse_if(count < 1 or width % count, f"{count} heads do not divide {width} channels")
    parts = body.reshape(x, (batch, length, count, width // count), f"{part}.split")
    return body.transpose(parts, (0, 2, 1, 3), part)


def merged_heads(body: Body, x: Value) -> Value:
    """[B,N,S,V] as [B,S,N*V], the node's own result."""
    batch, count, length, width = x.type.shape
    moved = body.transpose(x, (0, 2, 1, 3), ".rows")
    return body.reshape(moved, (batch, length, count * width), "")


def attended(body: Body, heads: Heads, masks: Sequence[Value | None], scale: float) -> Value:
    """softmax(scale * Q @ K^T + masks) @ V, [B,N,S,V]."""
    q = body.scaled(heads.q, scale, ".scaled")
    scores = body("matmul", [q, heads.k], ".scores", transpose_b=True)
    weights = body("softmax", [body.sum([scores, *masks], ".masked")], ".weights", axis=-1)
    return body("matmul", [weights, heads.v], ".mixed")


def _scale(node: OnnxNode, width: int) -> float:
    given = real(node, "scale", 0.0)
    return given if given else float(1.0 / np.sqrt(width))


# -- masks -------------------------------------------------------------------------------------


def causal_mask(body: Body, queries: int, keys: int) -> Value:
    """[S,T]: the last ``queries`` of ``keys`` places see what is not after them."""
    seen = np.tril(np.ones((queries, keys), bool), keys - queries)
    values = np.where(seen, 0.0, _LOWEST).astype(np.float32)
    return body.node.graph.add_constant(values, name="causal")


def _filtered(body: Body, seen: Value, value: float, part: str) -> Value:
    """0 where ``seen`` is true, else ``value``."""
    constant = body.node.graph.add_constant
    zero = constant(np.asarray(0, np.float32), name="zero")
    return body("where", [seen, zero, constant(np.asarray(value, np.float32), name="filter")], part)


def _places(body: Body, count: int, shape: Sequence[int]) -> Value:
    """0 .. count-1 in ``shape``."""
    values = np.arange(count, dtype=np.int64).reshape(shape)
    return body.node.graph.add_constant(values, name="places")


def key_mask(body: Body, mask: Value | None, heads: Heads, value: float) -> Value | None:
    """What ONNX Runtime's ``mask_index`` and ``key_padding_mask`` add to scores [B,N,S,T].

    Its shape says what it is: lengths [B], ends and starts [2B], or a mask of 0 and 1 of
    [B,T], [B,S,T] or [B,1,M,M].
    """
    if mask is None:
        return None
    (queries, keys), batch = heads.places, heads.q.type.shape[0]
    shape = mask.type.shape
    if len(shape) == 1:
        return _length_mask(body, mask, batch, keys, value)
    if len(shape) == 4:  # of the longest sequence: rows after the past, columns of all keys
        past = keys - queries
        mask = body.cut(body.cut(mask, 2, past, keys, ".mask.rows"), 3, 0, keys, ".mask.cut")
    elif shape[-1] != keys or len(shape) not in (2, 3):
        raise Unsupported(f"a mask of shape {list(shape)} for {queries} queries and {keys} keys")
    middle = (queries,) if len(shape) > 2 else (1,)
    seen = body("greater", [mask, body.constant(0, mask, "zero")], ".mask.seen")
    added = _filtered(body, seen, value, ".mask")
    return body.reshape(added, (added.type.shape[0], 1, *middle, keys), ".mask.heads")


def _length_mask(body: Body, mask: Value, batch: int, keys: int, value: float) -> Value:
    """The mask of lengths [B], or of ends and then starts [2B]."""
    count = mask.type.shape[0]
    if count not in (batch, 2 * batch):
        raise Unsupported(f"{count} lengths of {batch} sequences")
    places = _places(body, keys, (1, keys))
    numbers = cast_to(body.node, mask, I64, ".mask.numbers")

    def bound(first: int, part: str) -> Value:
        cut = body.cut(numbers, 0, first, first + batch, f"{part}.cut")
        return body.reshape(cut, (batch, 1), part)

    seen = body("less", [places, bound(0, ".mask.ends")], ".mask.before")
    if count == 2 * batch:
        after = body("greater_equal", [places, bound(batch, ".mask.starts")], ".mask.after")
        seen = body("and", [seen, after], ".mask.seen")
    added = _filtered(body, seen, value, ".mask")
    return body.reshape(added, (batch, 1, 1, keys), ".mask.heads")


# -- self-attention with its projection --------------------------------------------------------


def _sizes(node: OnnxNode, total: int) -> list[int]:
    """Channels of queries, keys and values."""
    given = node.attrs.get("qkv_hidden_sizes")
    sizes = [int(size) for size in given] if given else [total // 3] * 3
    refuse_if(len(sizes) != 3 or sum(sizes) != total, f"hidden sizes {sizes} of {total} channels")
    return sizes


def _joined(body: Body, past: Value | None, new: Value, index: int, part: str) -> Value:
    """Keys (0) or values (1) of ``past`` [2,B,N,P,H], then the new ones [B,N,S,H]."""
    if past is None:
        return new
    cut = body.cut(past, 0, index, index + 1, f"{part}.past.cut")
    return _after(body, body.reshape(cut, past.type.shape[1:], f"{part}.past"), new, part)


def _after(body: Body, past: Value | None, new: Value, part: str) -> Value:
    """``past`` and the new ones behind it, along axis 2."""
    if past is None or not past.type.elements:
        return new
    return body("concat", [past, new], f"{part}.all", axis=2)


def self_attention(
    node: OnnxNode,
    projected: Value,
    mask: Value | None,
    past: Value | None,
    added: Value | None = None,
) -> list[Value]:
    """Attention over queries, keys and values that lie side by side: [B,S,Q+K+V].

    Returns:
        The result [B,S,V], and keys and values [2,B,N,T,H] where the node gives them.
    """
    refuse_if(whole(node, "do_rotary"), "do_rotary; use RotaryEmbedding or GroupQueryAttention")
    refuse_if(whole(node, "past_present_share_buffer"), "a buffer that past and present share")
    body, count = Body(node), whole(node, "num_heads")
    sizes = np.cumsum([0, *_sizes(node, projected.type.shape[-1])])
    q, k, v = (
        split_heads(body, body.cut(projected, 2, int(a), int(b), f".{n}.cut"), count, f".{n}")
        for n, a, b in zip("qkv", sizes, sizes[1:], strict=False)
    )
    k, v = _joined(body, past, k, 0, ".k"), _joined(body, past, v, 1, ".v")
    heads = Heads(q, k, v)
    masks = [added, key_mask(body, mask, heads, real(node, "mask_filter_value", -10000.0))]
    if whole(node, "unidirectional"):
        masks.append(causal_mask(body, *heads.places))
    mixed = attended(body, heads, masks, _scale(node, q.type.shape[-1]))
    results = [merged_heads(body, mixed)]
    if node.output_count > 1:
        one, two = (body.reshape(x, (1, *x.type.shape), f".{n}.1") for n, x in (("k", k), ("v", v)))
        results.append(body("concat", [one, two], ".present", axis=0))
    return results


@onnx_op("Attention", domain=DOMAIN)
def _attention(node: OnnxNode) -> Sequence[Value]:
    """Self-attention with the projection of queries, keys and values."""
    body = Body(node)
    refuse_if(node.optional(6) is not None, "past_sequence_length")
    (product,) = body.onnx("MatMul", [node.input(0), node.input(1)], ".projection")
    projected = body.sum([product, node.optional(2)], ".biased")
    return self_attention(node, projected, node.optional(3), node.optional(4), node.optional(5))


# -- attention of given queries, keys and values -----------------------------------------------


def _separate(body: Body, count: int) -> tuple[Value, Value, Value]:
    """Queries, keys and values of MultiHeadAttention as heads, the bias added."""
    node = body.node
    query, key, value, bias = (node.optional(k) for k in range(4))
    assert query is not None
    if key is None:  # [B,S,N,3,H]
        parts = [_unpacked(body, query, k, n) for k, n in enumerate("qkv")]
    elif value is None:  # [B,T,N,2,H]
        parts = [query, *(_unpacked(body, key, k, n) for k, n in enumerate("kv"))]
    else:
        parts = [query, key, value]
    start, heads = 0, []
    for name, part in zip("qkv", parts, strict=True):
        if part.type.rank == 4:  # keys and values of another layer, already heads
            heads.append(part)
            continue
        width = part.type.shape[-1]
        if bias is not None:
            cut = body.cut(bias, 0, start, start + width, f".{name}.bias")
            part = body.sum([part, cut], f".{name}.biased")
            start += width
        heads.append(split_heads(body, part, count, f".{name}"))
    return heads[0], heads[1], heads[2]


def _unpacked(body: Body, packed: Value, index: int, part: str) -> Value:
    """One of what lies side by side in every head: [B,S,N,P,H] -> [B,S,N*H]."""
    refuse_if(packed.type.rank != 5, f"packed operands of shape {list(packed.type.shape)}")
    batch, length, count, _, width = packed.type.shape
    cut = body.cut(packed, 3, index, index + 1, f".{part}.packed")
    return body.reshape(cut, (batch, length, count * width), f".{part}.unpacked")


@onnx_op("MultiHeadAttention", domain=DOMAIN)
def _multi_head(node: OnnxNode) -> Sequence[Value]:
    """Attention of projected queries, keys and values, with a cache."""
    body, count = Body(node), whole(node, "num_heads")
    refuse_if(node.optional(8) is not None or node.optional(9) is not None, "a shared cache")
    refuse_if(node.wants(3), "the scores as a result")
    q, k, v = _separate(body, count)
    k, v = _after(body, node.optional(6), k, ".k"), _after(body, node.optional(7), v, ".v")
    heads = Heads(q, k, v)
    value = real(node, "mask_filter_value", -10000.0)
    masks = [node.optional(5), key_mask(body, node.optional(4), heads, value)]
    if whole(node, "unidirectional"):
        masks.append(causal_mask(body, *heads.places))
    mixed = attended(body, heads, masks, _scale(node, q.type.shape[-1]))
    return [merged_heads(body, mixed), k, v]


# -- rotary positions --------------------------------------------------------------------------


def rotated(body: Body, x: Value, cos: Value, sin: Value, interleaved: bool, part: str) -> Value:
    """Rotary embedding (Su et al. 2021) of heads [B,N,S,H] by tables [B or 1,1,S,R/2].

    The first R channels of a head are turned in pairs: neighbours where ``interleaved``, else
    channel i with channel i + R/2.
    """
    batch, count, length, width = x.type.shape
    half = cos.type.shape[-1]
    turned = body.cut(x, 3, 0, 2 * half, f"{part}.turned")
    if interleaved:
        pairs = body.reshape(turned, (batch, count, length, half, 2), f"{part}.pairs")
        a, b = (body.reshape(body.cut(pairs, 4, k, k + 1, f"{part}.pair{k}"),
                (batch, count, length, half), f"{part}.half{k}") for k in (0, 1))  # fmt: skip
    else:
        a = body.cut(turned, 3, 0, half, f"{part}.half0")
        b = body.cut(turned, 3, half, 2 * half, f"{part}.half1")

    def product(value: Value, table: Value, name: str) -> Value:
        return body("mul", [value, table], f"{part}.{name}")

    first = body("sub", [product(a, cos, "ac"), product(b, sin, "bs")], f"{part}.first")
    second = body("add", [product(a, sin, "as"), product(b, cos, "bc")], f"{part}.second")
    if interleaved:
        shape = (batch, count, length, half, 1)
        both = [
            body.reshape(v, shape, f"{part}.{n}") for n, v in (("even", first), ("odd", second))
        ]
        joined = body("concat", both, f"{part}.zipped", axis=4)
        made = [body.reshape(joined, (batch, count, length, 2 * half), f"{part}.joined")]
    else:
        made = [first, second]
    if 2 * half < width:
        made.append(body.cut(x, 3, 2 * half, width, f"{part}.rest"))
    return made[0] if len(made) == 1 else body("concat", made, part, axis=3)


def _tables(body: Body, cos: Value, sin: Value, places: Value) -> tuple[Value, Value]:
    """Rows of the caches at ``places`` [B or 1,S], as [B or 1,1,S,R/2]."""

    def rows(table: Value, part: str) -> Value:
        (made,) = body.onnx("Gather", [table, places], f"{part}.rows", {"axis": 0})
        batch, length, width = made.type.shape
        return body.reshape(made, (batch, 1, length, width), part)

    return rows(cos, ".cos"), rows(sin, ".sin")


@onnx_op("RotaryEmbedding", domain=DOMAIN)
def _rotary(node: OnnxNode) -> Sequence[Value]:
    """Rotary embedding of [B,S,N*H] or [B,N,S,H] at places (1) or [B,S]."""
    body, x, places = Body(node), node.input(0), node.input(1)
    refuse_if(whole(node, "is_packed_batching"), "packed batches")
    cos, sin = node.input(2), node.input(3)
    flat = x.type.rank == 3
    length, partial = x.type.shape[1 if flat else 2], whole(node, "rotary_embedding_dim")
    count, width = whole(node, "num_heads"), 2 * cos.type.shape[-1]
    if flat:
        refuse_if(partial and not count, "rotary_embedding_dim without num_heads")
        x = split_heads(body, x, count if partial else x.type.shape[-1] // width, ".heads")
    if places.type.elements == 1 or places.type.rank == 1:
        offset = body.reshape(places, (1, 1), ".offset")
        own = cast_to(node, offset, I64, ".offset.i64")
        places = body("add", [own, _places(body, length, (1, length))], ".places")
    cos, sin = _tables(body, cos, sin, places)
    made = rotated(body, x, cos, sin, bool(whole(node, "interleaved")), ".rotated")
    made = body.scaled(made, real(node, "scale", 1.0), ".scaled")
    return [merged_heads(body, made) if flat else made]


# -- grouped queries ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grouped:
    """A GroupQueryAttention node: N queries' heads share K heads of keys and values.

    Attributes:
        body: its operators.
        kept: places in the cache before this call.
        total: places in the cache after it.
        lasts: [B,1] the last valid place of every sequence, i64.
        starts: [B,1] the place of the first new token, i64.
    """

    body: Body
    kept: int
    total: int
    lasts: Value
    starts: Value

    def places(self, length: int) -> Value:
        """[B,S]: the places of the new tokens."""
        return self.body("add", [self.starts, _places(self.body, length, (1, length))], ".places")

    def cached(self, past: Value | None, new: Value, part: str) -> Value:
        """The cache [B,K,T,H] with the new rows [B,K,S,H] written from ``starts`` on."""
        body, (batch, count, length, width) = self.body, new.type.shape
        if past is None or not self.kept:
            return self._padded(new, self.total, part)
        old = self._padded(past, self.total, f"{part}.past")
        here = _places(body, self.total, (1, self.total))
        at = body("sub", [here, self.starts], f"{part}.at")
        low, high = (body.constant(k, at, "bound") for k in (0, length - 1))
        held = body("minimum", [body("maximum", [at, low], f"{part}.low"), high], f"{part}.held")
        shape = (batch, 1, self.total, 1)
        index = body.reshape(held, shape, f"{part}.index")
        index = body("expand", [index], f"{part}.rows", shape=(batch, count, self.total, width))
        fresh = body("gather_elements", [new, index], f"{part}.new", axis=2)

        def chosen(op: str, bound: Value, name: str) -> Value:
            return body.reshape(
                body(op, [at, bound], f"{part}.{name}"), shape, f"{part}.{name}.rows"
            )

        zero = body.constant(0.0, new, "zero")  # as ONNX Runtime leaves what nothing is written to
        fresh = body("where", [chosen("less_equal", high, "to"), fresh, zero], f"{part}.fresh")
        return body("where", [chosen("less", low, "kept"), old, fresh], part)

    def _padded(self, x: Value, length: int, part: str) -> Value:
        more = length - x.type.shape[2]
        if not more:
            return x
        return self.body("pad", [x], f"{part}.padded", pads=(0, 0, 0, 0, 0, 0, more, 0))

    def mask(self, length: int) -> Value:
        """[B,1,S,T]: what is added to scores of keys that are later, too old, or not written."""
        body, window = self.body, whole(self.body.node, "local_window_size", -1)
        batch = self.starts.type.shape[0]
        keys = _places(body, self.total, (1, 1, self.total))
        own = body.reshape(self.places(length), (batch, length, 1), ".own")
        lasts = body.reshape(self.lasts, (batch, 1, 1), ".lasts")
        seen = body("less_equal", [keys, body("minimum", [own, lasts], ".limit")], ".seen")
        if window > 0:
            age = body("sub", [own, keys], ".age")
            young = body("less", [age, body.constant(window, age, "window")], ".young")
            seen = body("and", [seen, young], ".window")
        added = _filtered(body, seen, _LOWEST, ".mask")
        return body.reshape(added, (batch, 1, length, self.total), ".mask.heads")


_UNREAD = ("smooth_softmax", "sliding_window_cache", "kv_cache_bit_width", "qk_output")


def _grouped_operands(body: Body) -> tuple[Value, Value, Value]:
    """Queries [B,N,S,H], keys and values [B,K,S,H] of a GroupQueryAttention."""
    node = body.node
    count, shared = whole(node, "num_heads"), whole(node, "kv_num_heads")
    query, key, value = node.input(0), node.optional(1), node.optional(2)
    if key is None or value is None:
        total = count + 2 * shared
        width = query.type.shape[-1] // max(total, 1)
        ends = np.cumsum([0, count * width, shared * width, shared * width])
        query, key, value = (
            body.cut(query, 2, int(a), int(b), f".{n}.cut")
            for n, a, b in zip("qkv", ends, ends[1:], strict=False)
        )
    q = split_heads(body, query, count, ".q")
    return q, split_heads(body, key, shared, ".k"), split_heads(body, value, shared, ".v")


def _cache(body: Body, length: int) -> _Grouped:
    """Where the new tokens of a GroupQueryAttention belong."""
    node = body.node
    kept = 0 if (past := node.optional(3)) is None else past.type.shape[2]
    total = int(node.constant(6, "total_sequence_length (bind it: --constant)").reshape(-1)[0])
    lasts = cast_to(node, node.input(5), I64, ".lasts.i64")
    lasts = body.reshape(lasts, (lasts.type.elements, 1), ".lasts.rows")
    if total == length:  # a prompt: sequences begin at 0, whatever they are padded to
        starts = body.node.graph.add_constant(np.zeros(lasts.type.shape, np.int64), name="starts")
    else:
        starts = body("sub", [lasts, body.constant(length - 1, lasts, "new")], ".starts")
    return _Grouped(body, kept, max(kept, total), lasts, starts)


@onnx_op("GroupQueryAttention", domain=DOMAIN)
def _group_query(node: OnnxNode) -> Sequence[Value]:
    """Causal attention whose heads of keys and values serve several of queries, with a cache."""
    for key in _UNREAD:
        refuse_if(whole(node, key), key)
    refuse_if(not whole(node, "causal", 1), "causal=0")
    refuse_if(any(node.optional(k) is not None for k in range(11, 16)), "sinks, scales of caches")
    refuse_if(node.wants(3), "the scores as a result")
    body = Body(node)
    q, k, v = _grouped_operands(body)
    _, count, length, width = q.type.shape
    cache = _cache(body, length)
    if whole(node, "do_rotary"):
        told = node.optional(9)
        places = cache.places(length) if told is None else told
        tables = _tables(body, node.input(7), node.input(8), places)
        pairs = bool(whole(node, "rotary_interleaved"))
        q = rotated(body, q, *tables, pairs, ".q.rotated")
        k = rotated(body, k, *tables, pairs, ".k.rotated")
    k, v = cache.cached(node.optional(3), k, ".k"), cache.cached(node.optional(4), v, ".v")
    group = count // k.type.shape[1]
    mask = cache.mask(length)
    heads = Heads(q, _repeated(body, k, group, ".k"), _repeated(body, v, group, ".v"))
    softcap, scale = real(node, "softcap", 0.0), _scale(node, width)
    if softcap:
        mixed = _capped(body, heads, [node.optional(10), mask], scale, softcap)
    else:
        mixed = attended(body, heads, [node.optional(10), mask], scale)
    return [merged_heads(body, mixed), k, v]


def _capped(
    body: Body, heads: Heads, masks: Sequence[Value | None], scale: float, cap: float
) -> Value:
    """As :func:`attended`, with scores held within ``cap`` by a tanh."""
    q = body.scaled(heads.q, scale / cap, ".scaled")
    scores = body("matmul", [q, heads.k], ".scores", transpose_b=True)
    held = body.scaled(body("tanh", [scores], ".tanh"), cap, ".capped")
    weights = body("softmax", [body.sum([held, *masks], ".masked")], ".weights", axis=-1)
    return body("matmul", [weights, heads.v], ".mixed")


def _repeated(body: Body, x: Value, times: int, part: str) -> Value:
    """[B,K,T,H] with every head ``times`` times: [B,K*times,T,H]."""
    if times == 1:
        return x
    batch, count, length, width = x.type.shape
    one = body.reshape(x, (batch, count, 1, length, width), f"{part}.one")
    many = body("expand", [one], f"{part}.many", shape=(batch, count, times, length, width))
    return body.reshape(many, (batch, count * times, length, width), f"{part}.repeated")
