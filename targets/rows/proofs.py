"""What is proven of a layer's sums at compile time, from its weights and its input's codes."""

from __future__ import annotations

from functools import lru_cache

from dlcc.analysis.accumulators import Bounds
from dlcc.ir import Affine, Constant, Node, TensorType, Value
from dlcc.lowering.views import root
from targets.isa import Isa
from targets.kernels import conv
from targets.kernels.pairs import ANY_CODES, PairSums
from targets.kernels.spec import ConvSpec
from targets.rows import layers


def code_bounds(value: Value) -> Bounds:
    """The codes that an activation can hold in memory.

    Kernels clamp to the encoding's range. What the caller passes may be any bytes.
    """
    source, codes = root(value), value.type.affine
    made = source.type.encoding  # of the bytes, which a reinterpret may give another name
    if source.producer is None or not isinstance(made, Affine) or made.signed:
        return ANY_CODES
    return Bounds(0, max(made.code_range[1], codes.code_range[1]))


def pair_sums(node: Node, isa: Isa) -> PairSums:
    """How the products of a ``conv2d`` or ``linear`` layer may be summed in 16 bits."""
    weight, spec = node.input(1), layers.conv_spec(node)
    assert weight.constant is not None
    return _found(weight.constant, weight.type, spec, isa, code_bounds(node.input(0)))


@lru_cache(maxsize=4)
def _found(
    constant: Constant, type_: TensorType, spec: ConvSpec, isa: Isa, codes: Bounds
) -> PairSums:
    """Kept, as choosing and planning a kernel ask for it."""
    weights = layers.stored_weight(constant, type_, True)
    shaped = weights.reshape(spec.oc, spec.c // spec.groups, spec.kh, spec.kw)
    return conv.pair_sums(spec, isa, shaped, codes)
