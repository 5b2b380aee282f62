"""Weights and tables of 2, 4 and 8 bits with scales for blocks: MatMulNBits, GatherBlockQuantized.

The weights of MatMulNBits stay packed: they get the encoding :class:`dlcc.ir.Grouped`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlcc.frontends.contrib.body import DOMAIN, Body, refuse_if, whole
from dlcc.frontends.registry import OnnxNode, onnx_op
from dlcc.ir import F32, Grouped, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ir.packing import pack_bits
from dlcc.ops.quant import known_array, optional_array


def _unpacked(array: Array, bits: int) -> Array:
    """uint8[..., n] bytes as [..., n * 8 / bits] codes, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = array.astype(np.uint8)[..., None] >> shifts & ((1 << bits) - 1)
    return np.asarray(parts.reshape(*array.shape[:-1], -1))


def _blocks(node: OnnxNode, bits: int) -> tuple[int, int, int, int]:
    """(rows N, columns K, columns of a block, blocks of a row), checked.

    Raises:
        Unsupported: widths that are not read, or operands of other sizes.
    """
    rows, columns, block = (whole(node, key) for key in ("N", "K", "block_size"))
    refuse_if(bits not in (2, 4, 8), f"{bits} bits; 2, 4 and 8 are read")
    refuse_if(min(rows, columns, block) < 1, f"N={rows}, K={columns}, block_size={block}")
    count = -(-columns // block)
    needed = rows * count * block * bits // 8
    given = node.input(1).type.elements
    refuse_if(given != needed, f"{given} bytes of weights, and {needed} are needed")
    given = node.input(2).type.elements
    refuse_if(given != rows * count, f"{given} scales, and {rows * count} are needed")
    return rows, columns, block, count


def _zero_points(node: OnnxNode, bits: int, rows: int, count: int) -> Array | None:
    """float32[rows, blocks]; None where all are the middle of the codes."""
    array = optional_array(node, 3, "the zero points")
    if array is None:
        return None
    if array.dtype.kind == "u":
        each = -(-count * bits // 8)
        refuse_if(array.size != rows * each, f"{array.size} bytes of zero points")
        array = _unpacked(array.reshape(rows, each), bits)[:, :count]
    zeros = array.astype(np.float32).reshape(rows, count)
    return None if (zeros == 1 << (bits - 1)).all() else zeros


@onnx_op("MatMulNBits", domain=DOMAIN)
def _matmul_nbits(node: OnnxNode) -> Sequence[Value]:
    """A @ ((B - zero_point) * scale)^T with B of 2, 4 or 8 bits in blocks along K.

    With h the middle of the codes, B - z is (B - h) + (h - z): the first is a layer of packed
    codes, the second a layer of the sums of A's blocks.
    """
    body, bits = Body(node), whole(node, "bits", 4)
    refuse_if(whole(node, "weight_prepacked"), "weights packed for one machine's kernels")
    rows, columns, block, count = _blocks(node, bits)
    packed = known_array(node, 1, "the weight")
    scales = known_array(node, 2, "the scales").astype(np.float32).reshape(rows, count)
    zeros, half = _zero_points(node, bits, rows, count), 1 << (bits - 1)
    codes = _unpacked(packed.reshape(rows, -1), bits)[:, : count * block]
    order, x = optional_array(node, 4, "g_idx"), node.input(0)
    if order is not None and not (order == np.arange(order.size) // block).all():
        weight = _regrouped(codes[:, :columns], order[:columns], scales, zeros, half)
        constant = node.graph.add_constant(weight, name=node.name + ".weight")
        return [body("linear", [x, constant, node.optional(5)])]
    signed = codes[:, :columns].astype(np.int16) - half
    type_ = TensorType((rows, columns), F32, Grouped(bits, block))
    parts = {"values": pack_bits(signed.astype(np.int8), bits), "scales": scales}
    constant = node.graph.add_stored(parts, type_, name=node.name + ".weight")
    last = "" if zeros is None else ".codes"
    made = body("linear", [x, constant, node.optional(5)], last)
    if zeros is None:
        return [made]
    offsets = node.graph.add_constant((half - zeros) * scales, name=node.name + ".offsets")
    return [body("add", [made, body("linear", [_block_sums(body, x, block), offsets], ".shift")])]


def _regrouped(codes: Array, order: Array, scales: Array, zeros: Array | None, half: int) -> Array:
    """float32 weights whose columns belong to the blocks that ``order`` says."""
    middle = np.float32(half) if zeros is None else zeros[:, order]
    return np.asarray((codes.astype(np.float32) - middle) * scales[:, order])


def _block_sums(body: Body, x: Value, block: int) -> Value:
    """[...,K] -> [...,blocks]: the sums of the blocks, the last of which may be shorter."""
    *lead, columns = x.type.shape
    count = -(-columns // block)
    more = count * block - columns
    if more:
        pads = (0,) * (2 * x.type.rank - 1) + (more,)
        x = body("pad", [x], ".filled", pads=pads)
    split = body.reshape(x, (*lead, count, block), ".blocks")
    return body("reduce_sum", [split], ".sums", axes=(len(lead) + 1,), keepdims=False)


@onnx_op("GatherBlockQuantized", domain=DOMAIN)
def _gather_blocks(node: OnnxNode) -> Sequence[Value]:
    """Rows of a table of codes with scales for blocks: looked up first, dequantised then."""
    body, indices = Body(node), node.input(1)
    codes, zeros, bits = node.input(0), node.optional(3), whole(node, "bits", 4)
    block = whole(node, "block_size", 128)
    refuse_if(bits not in (2, 4, 8), f"{bits} bits; 2, 4 and 8 are read")
    if codes not in node.elements and str(codes.type.storage) == "u8":
        codes, zeros = _unpacked_table(node, bits)
    elif zeros is None and node.element(0).kind == "uint":
        refuse_if(True, "uint4 codes without zero points")
    rank = codes.type.rank
    at, axis = whole(node, "gather_axis") % rank, whole(node, "quantize_axis", 1) % rank
    refuse_if(at == axis, "looked up along the axis of the blocks")

    def rows(table: Value, part: str) -> Value:
        return body.onnx("Gather", [table, indices], part, {"axis": at})[0]

    operands: list[Value | None] = [rows(codes, ".codes"), rows(node.input(2), ".scales")]
    operands.append(None if zeros is None else rows(zeros, ".zeros"))
    axis += indices.type.rank - 1 if at < axis else 0
    return body.onnx("DequantizeLinear", operands, "", {"axis": axis, "block_size": block})


def _unpacked_table(node: OnnxNode, bits: int) -> tuple[Value, Value]:
    """Codes and zero points that lie packed in bytes along the last axis; known ones."""
    table = _unpacked(known_array(node, 0, "the table"), bits)
    scales = node.input(2).type.shape
    given = optional_array(node, 3, "the zero points")
    if given is None:
        zeros = np.full(scales, 1 << (bits - 1), np.uint8)
    else:
        zeros = _unpacked(given, bits)[..., : scales[-1]]
    constant = node.graph.add_constant
    return constant(table, name="table"), constant(np.ascontiguousarray(zeros), name="zeros")
