"""One node of ``com.microsoft`` each: what the importers of that domain are checked on.

    python -m tests.frontends.contrib_cases     writes the results by ONNX Runtime

The results stand in ``contrib_goldens.npz``, so that the tests can fail without ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GOLDENS = Path(__file__).parent / "contrib_goldens.npz"

F = np.float32


@dataclass(frozen=True)
class Live:
    """An operand that is an input of the model."""

    array: np.ndarray


Operand = Live | np.ndarray | None


@dataclass(frozen=True)
class Case:
    """One node: operands (inputs, initialisers, omitted ones), attributes, results by place.

    ``wanted`` says which results are asked for; ``close`` is the distance allowed, relative to the
    largest number. ``like`` computes the same and has a kernel on CPUs in ONNX Runtime.
    """

    name: str
    op_type: str
    operands: Sequence[Operand]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    wanted: Sequence[int] = (0,)
    close: float = 2e-6
    kind: int = TensorProto.FLOAT
    like: Case | None = None

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        return {f"x{k}": o.array for k, o in enumerate(self.operands) if isinstance(o, Live)}

    def model(self) -> onnx.ModelProto:
        names = ["" if o is None else f"x{k}" for k, o in enumerate(self.operands)]
        results = [f"y{k}" if k in self.wanted else "" for k in range(max(self.wanted) + 1)]
        node = helper.make_node(
            self.op_type, names, results, name=self.name, domain="com.microsoft", **self.attrs
        )
        known = [
            numpy_helper.from_array(o, f"x{k}")
            for k, o in enumerate(self.operands)
            if isinstance(o, np.ndarray)
        ]
        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in self.feeds.items()
        ]
        outputs = [helper.make_tensor_value_info(n, self._kind(n), None) for n in results if n]
        graph = helper.make_graph([node], "net", inputs, outputs, known)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def _kind(self, name: str) -> int:
        return TensorProto.INT32 if name == "y1" and "Embed" in self.op_type else self.kind


_RNG = np.random.default_rng(20)


def f32(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (_RNG.standard_normal(shape) * scale).astype(F)


def ints(low: int, high: int, *shape: int, kind: Any = np.int64) -> np.ndarray:
    return _RNG.integers(low, high, shape).astype(kind)


def one(value: float, kind: Any = F) -> np.ndarray:
    return np.asarray(value, kind)


def _pointwise() -> list[Case]:
    x, bias = Live(f32(2, 3, 8)), f32(8)
    return [
        Case("gelu", "Gelu", [x]),
        Case("fast_gelu", "FastGelu", [x]),
        Case("fast_gelu_bias", "FastGelu", [x, bias]),
        Case("bias_gelu", "BiasGelu", [x, bias]),
        Case("quick_gelu", "QuickGelu", [x]),
        Case("quick_gelu_1", "QuickGelu", [x], {"alpha": 1.0}),
        Case("scaled_silu", "ScaledSiLU", [x, one(0.5)], {"alpha": 3.0}),
        Case("scaled_silu_alpha", "ScaledSiLU", [x], {"alpha": 3.0}),
        Case("trilu", "Trilu", [Live(f32(4, 4)), one(1, np.int64)], {"upper": 0}),
        Case("pad", "Pad", [x, np.asarray([0, 1, 0, 0, 0, 2], np.int64), one(3)]),
        Case("gather_nd", "GatherND", [x, ints(0, 2, 4, 2)]),
        Case("grid_sample", "GridSample",
             [Live(f32(1, 2, 4, 5)), Live(f32(1, 3, 3, 2, scale=0.6))], {"align_corners": 1}),
        Case("expand_dims", "ExpandDims", [x, one(1, np.int32)]),
        Case("cdist", "CDist", [Live(f32(3, 5)), Live(f32(4, 5))], {"metric": "euclidean"}),
        Case("cdist_squared", "CDist", [Live(f32(3, 5)), Live(f32(4, 5))]),
        Case("unfold", "UnfoldTensor", [Live(f32(2, 7, 3))], {"dim": 1, "size": 3, "step": 2}),
    ]  # fmt: skip


def _products() -> list[Case]:
    a, b, w = Live(f32(2, 3, 4, 5)), Live(f32(2, 3, 6, 5)), f32(5, 6)
    image, kernel = Live(f32(1, 4, 6, 6)), f32(8, 4, 3, 3, scale=0.3)
    conv = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
    return [
        Case("matmul_b", "FusedMatMul", [a, b], {"transB": 1, "alpha": 0.125}),
        Case("matmul_ab", "FusedMatMul", [Live(f32(2, 5, 4)), Live(f32(2, 6, 5))],
             {"transA": 1, "transB": 1}),
        Case("matmul_known", "FusedMatMul", [a, w], {"alpha": 2.0}),
        Case("matmul_batch", "FusedMatMul", [Live(f32(4, 2, 5)), Live(f32(5, 2, 6))],
             {"transBatchA": 1, "transBatchB": 1}),
        Case("matmul_batch_a", "FusedMatMul", [Live(f32(5, 2, 4)), Live(f32(2, 5, 6))],
             {"transBatchA": 1, "transA": 1}),
        Case("transpose_matmul", "TransposeMatMul", [a, b], {"transB": 1}),
        Case("gemm_relu", "FusedGemm", [Live(f32(3, 5)), w, f32(6)], {"activation": "Relu"}),
        Case("gemm_leaky", "FusedGemm", [Live(f32(3, 5)), f32(6, 5), f32(6)],
             {"activation": "LeakyRelu", "activation_alpha": 0.2, "transB": 1, "beta": 0.5}),
        Case("conv_relu", "FusedConv", [image, kernel, f32(8)], {"activation": "Relu", **conv}),
        Case("conv_clip", "FusedConv", [image, kernel],
             {"activation": "Clip", "activation_params": (-0.5, 0.75), **conv}),
        Case("conv_hard", "FusedConv", [image, kernel, f32(8)],
             {"activation": "HardSigmoid", "activation_params": (0.2, 0.5), **conv}),
        Case("conv_sum", "FusedConv", [image, kernel, f32(8), Live(f32(1, 8, 6, 6))],
             {"activation": "Relu", **conv}),
    ]  # fmt: skip


def _norms() -> list[Case]:
    x, skip, gamma, beta = Live(f32(2, 4, 16)), Live(f32(2, 4, 16)), f32(16), f32(16)
    ids, kinds = Live(ints(0, 30, 2, 5, kind=np.int32)), Live(ints(0, 2, 2, 5, kind=np.int32))
    mask = Live(np.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32))
    tables = [f32(30, 16), f32(9, 16), f32(2, 16)]
    return [
        Case("skip_norm", "SkipLayerNormalization", [x, skip, gamma, beta, f32(16)],
             {"epsilon": 1e-5}, (0, 3)),
        Case("skip_norm_plain", "SkipLayerNormalization", [x, Live(f32(4, 16)), gamma]),
        Case("skip_rms", "SkipSimplifiedLayerNormalization", [x, skip, gamma, f32(16)],
             {"epsilon": 1e-6}, (0, 3)),
        Case("embed", "EmbedLayerNormalization", [ids, kinds, *tables, gamma, beta, mask],
             {"epsilon": 1e-5}, (0, 1)),
        Case("embed_places", "EmbedLayerNormalization",
             [ids, None, *tables[:2], None, gamma, beta, None, ints(0, 9, 2, 5, kind=np.int32)],
             {}, (0, 1, 2)),
    ]  # fmt: skip


def _self_attention() -> list[Case]:
    x, w, bias = Live(f32(2, 4, 8)), f32(8, 24, scale=0.4), f32(24)
    past = Live(f32(2, 2, 2, 3, 4))
    kept = np.asarray([[1, 1, 0, 0], [1, 1, 1, 0]], np.int32)
    heads = {"num_heads": 2}
    return [
        Case("attention", "Attention", [x, w, bias], heads),
        Case("attention_lengths", "Attention",
             [x, w, bias, Live(np.asarray([2, 4], np.int32))], heads),
        Case("attention_ends", "Attention",
             [x, w, bias, Live(np.asarray([3, 4, 1, 0], np.int32))], heads),
        Case("attention_mask", "Attention", [x, w, bias, Live(kept)], heads),
        Case("attention_mask_3", "Attention",
             [x, w, bias, Live(ints(0, 2, 2, 4, 4, kind=np.int32))], heads),
        Case("attention_past", "Attention", [x, w, bias, None, past],
             {"unidirectional": 1, **heads}, (0, 1)),
        Case("attention_added", "Attention",
             [x, w, bias, None, None, Live(f32(1, 2, 4, 4))], {"scale": 0.3, **heads}),
        Case("attention_sizes", "Attention", [x, f32(8, 20, scale=0.4), f32(20)],
             {"qkv_hidden_sizes": (8, 8, 4), **heads}),
    ]  # fmt: skip


def _interleaved(operands: Sequence[Live], heads: int) -> np.ndarray:
    """[B,S,N*H] each as one [B,S,N,P,H]."""
    parts = [o.array.reshape(*o.array.shape[:2], heads, -1) for o in operands]
    return np.stack(parts, axis=3)


def _multi_head() -> list[Case]:
    q, k, v = (Live(f32(2, n, 8)) for n in (3, 5, 5))
    same = [Live(f32(2, 3, 8)) for _ in "qkv"]
    heads = {"num_heads": 2}
    past = [Live(f32(2, 2, 2, 4)) for _ in "kv"]
    return [
        Case("heads", "MultiHeadAttention", [q, k, v], heads),
        Case("heads_bias", "MultiHeadAttention", [q, k, v, f32(24)], heads),
        Case("heads_mask", "MultiHeadAttention",
             [q, k, v, None, Live(np.asarray([2, 5], np.int32))], heads),
        Case("heads_mask_2", "MultiHeadAttention",
             [q, k, v, None, Live(np.tri(2, 5, 2, np.int32))], heads),
        Case("heads_added", "MultiHeadAttention",
             [q, k, v, None, None, Live(f32(1, 2, 3, 5))], heads),
        Case("heads_past", "MultiHeadAttention",
             [Live(f32(2, 3, 8)), Live(f32(2, 3, 8)), Live(f32(2, 3, 8)), None, None, None, *past],
             {"unidirectional": 1, **heads}, (0, 1, 2)),
        Case("heads_cross", "MultiHeadAttention",
             [q, Live(f32(2, 2, 5, 4)), Live(f32(2, 2, 5, 4))], heads),
        Case("heads_packed", "MultiHeadAttention", [Live(_interleaved(same, 2))], heads,
             like=Case("", "MultiHeadAttention", same, heads)),
    ]  # fmt: skip


def _grouped() -> list[Case]:
    def qkv(length: int) -> list[Operand]:
        return [Live(f32(2, length, n * 16)) for n in (4, 2, 2)]

    past = [Live(f32(2, 2, 6, 16)) for _ in "kv"]
    empty: list[Operand] = [Live(np.zeros((2, 2, 0, 16), F)) for _ in "kv"]
    heads = {"num_heads": 4, "kv_num_heads": 2}
    tables = [f32(12, 8), f32(12, 8)]
    lasts = np.asarray([3, 5], np.int32)
    prompt: list[Operand] = [Live(np.asarray([2, 3], np.int32)), one(4, np.int32)]
    return [
        Case("grouped_prompt", "GroupQueryAttention", [*qkv(4), *empty, *prompt], heads, (0, 1, 2)),
        Case("grouped_rotary", "GroupQueryAttention",
             [*qkv(4), *empty, Live(np.asarray([3, 3], np.int32)), one(4, np.int32), *tables],
             {"do_rotary": 1, **heads}, (0, 1, 2)),
        Case("grouped_step", "GroupQueryAttention",
             [*qkv(1), *past, Live(np.asarray([6, 6], np.int32)), one(7, np.int32), *tables],
             {"do_rotary": 1, "rotary_interleaved": 1, **heads}, (0, 1, 2)),
        Case("grouped_window", "GroupQueryAttention",
             [*qkv(1), *past, Live(lasts), one(6, np.int32)],
             {"local_window_size": 3, "softcap": 5.0, **heads}, (0, 1, 2)),
        Case("grouped_packed", "GroupQueryAttention",
             [Live(f32(2, 4, 128)), None, None, *empty, *prompt], {"scale": 0.5, **heads}),
    ]  # fmt: skip


def _rotary() -> list[Case]:
    tables = [f32(9, 4), f32(9, 4)]
    places = Live(ints(0, 9, 2, 3))
    return [
        Case("rotary", "RotaryEmbedding", [Live(f32(2, 3, 16)), places, *tables]),
        Case("rotary_pairs", "RotaryEmbedding", [Live(f32(2, 2, 3, 8)), places, *tables],
             {"interleaved": 1}),
        Case("rotary_offset", "RotaryEmbedding",
             [Live(f32(2, 3, 16)), Live(np.asarray([4], np.int64)), *tables]),
        Case("rotary_part", "RotaryEmbedding",
             [Live(f32(2, 3, 16)), places, f32(9, 2), f32(9, 2)],
             {"num_heads": 2, "rotary_embedding_dim": 4}),
    ]  # fmt: skip


def _bits(name: str, bits: int, zeros: str = "", k: int = 64, batch: int = 1, **extra: Any) -> Case:
    n, block = 6, 32
    count = -(-k // block)
    operands: list[Operand] = [
        Live(f32(batch, k)),
        ints(0, 256, n, count, block * bits // 8, kind=np.uint8),
        np.abs(f32(n, count)) * F(0.05) + F(0.01),
    ]
    if zeros == "packed":
        operands.append(ints(0, 256, n, -(-count * bits // 8), kind=np.uint8))
    elif zeros == "float":
        operands.append((ints(30, 130, n, count) / 10).astype(F))
    operands += [None] * (len(extra) and 5 - len(operands))
    operands += list(extra.values())
    attrs = {"K": k, "N": n, "bits": bits, "block_size": block}
    return Case(name, "MatMulNBits", operands, attrs, close=1e-5)


def _packed() -> list[Case]:
    table = ints(0, 256, 7, 32, kind=np.uint8)
    return [
        _bits("bits_4", 4),
        _bits("bits_4_zeros", 4, "packed", batch=3),
        _bits("bits_4_float_zeros", 4, "float"),
        _bits("bits_4_odd", 4, "packed", k=72),
        _bits("bits_8", 8, batch=2),
        _bits("bits_2", 2, "packed"),
        _bits("bits_4_bias", 4, "", bias=f32(6)),
        Case("gather_blocks", "GatherBlockQuantized",
             [table, Live(ints(0, 7, 2, 3)), np.abs(f32(7, 2)), ints(0, 256, 7, 1, kind=np.uint8)],
             {"bits": 4, "block_size": 32}),
        Case("gather_blocks_8", "GatherBlockQuantized",
             [table, Live(ints(0, 7, 2, 3)), np.abs(f32(7, 2))], {"bits": 8, "block_size": 16}),
    ]  # fmt: skip


def _integers() -> list[Case]:
    u8 = {"kind": TensorProto.UINT8}
    codes, weight = Live(ints(0, 256, 4, 8, kind=np.uint8)), ints(-128, 128, 8, 6, kind=np.int8)
    scales = np.abs(f32(6)) * F(0.01) + F(0.001)
    image = Live(ints(0, 256, 1, 6, 6, 4, kind=np.uint8))
    kernel = ints(-128, 128, 5, 4, 3, 3, kind=np.int8)
    x = Live(f32(2, 4, 8))
    lstm = [ints(-128, 128, 1, 5, 16, kind=np.int8), ints(-128, 128, 1, 4, 16, kind=np.int8)]
    steps = [np.asarray([0.006], F), np.zeros(1, np.int8)]
    tables = [ints(0, 256, *shape, kind=np.uint8) for shape in ((30, 16), (9, 16), (2, 16))]
    tables += [ints(0, 256, 16, kind=np.uint8) for _ in ("gamma", "beta")]
    ids, kinds = Live(ints(0, 30, 2, 5, kind=np.int32)), Live(ints(0, 2, 2, 5, kind=np.int32))
    return [
        Case("integer_to_float", "MatMulIntegerToFloat",
             [codes, weight, Live(one(0.02)), scales, Live(one(121, np.uint8)),
              np.zeros(6, np.int8), f32(6)]),
        Case("integer_to_float_u8", "MatMulIntegerToFloat",
             [codes, ints(0, 256, 8, 6, kind=np.uint8), one(0.02), one(0.01), one(121, np.uint8),
              one(130, np.uint8)]),
        Case("dynamic_matmul", "DynamicQuantizeMatMul",
             [x, weight, scales, np.zeros(6, np.int8), f32(6)], close=1e-5),
        Case("dynamic_matmul_one", "DynamicQuantizeMatMul",
             [x, ints(0, 256, 8, 6, kind=np.uint8), np.asarray([0.01], F),
              np.asarray([128], np.uint8)], close=1e-5),
        Case("qattention", "QAttention",
             [Live(ints(0, 256, 2, 4, 8, kind=np.uint8)), ints(-128, 128, 8, 24, kind=np.int8),
              f32(24), one(0.02), one(0.01), Live(np.asarray([2, 4], np.int32)),
              one(128, np.uint8), one(0, np.int8)], {"num_heads": 2}),
        Case("matmul_16", "MatMulInteger16",
             [Live(ints(-30000, 30000, 3, 5, kind=np.int16)),
              ints(-30000, 30000, 5, 4, kind=np.int16)], kind=TensorProto.INT32, close=0.0),
        Case("q_conv_last", "QLinearConv",
             [image, one(0.03), one(121, np.uint8), kernel, one(0.002), one(0, np.int8), one(0.05),
              one(99, np.uint8)], {"channels_last": 1, "pads": (1, 1, 1, 1)}, **u8),
        Case("nhwc_max_pool", "NhwcMaxPool", [image], {"kernel_shape": (2, 2), "strides": (2, 2)},
             **u8),
        Case("q_where", "QLinearWhere",
             [Live(ints(0, 2, 3, 4, kind=bool)), Live(ints(0, 256, 3, 4, kind=np.uint8)), one(0.02),
              one(100, np.uint8), Live(ints(0, 256, 3, 4, kind=np.uint8)), one(0.03),
              one(140, np.uint8), one(0.03), one(128, np.uint8)], **u8),
        Case("quantize", "QuantizeLinear", [x, one(0.1), one(-3, np.int8)],
             kind=TensorProto.INT8),
        Case("quantize_16", "QuantizeLinear", [x, one(0.001), one(300, np.int16)],
             kind=TensorProto.INT16),
        Case("dequantize_16", "DequantizeLinear",
             [Live(ints(-9000, 9000, 3, 4, kind=np.int16)), one(0.001), one(300, np.int16)]),
        Case("dynamic_lstm", "DynamicQuantizeLSTM",
             [Live(f32(3, 2, 5)), *lstm, f32(1, 32), None, None, None, None, *steps, *steps],
             {"hidden_size": 4}, (0, 1, 2), close=0.03),
        Case("q_embed", "QEmbedLayerNormalization",
             [ids, kinds, *tables, Live(np.ones((2, 5), np.int32)),
              *[one(0.01 + k / 300) for k in range(5)],
              *[one(100 + k, np.uint8) for k in range(5)]], {"epsilon": 1e-5}, (0, 1)),
    ]  # fmt: skip


def cases() -> list[Case]:
    return [
        *_pointwise(), *_products(), *_norms(), *_self_attention(), *_multi_head(), *_grouped(),
        *_rotary(), *_packed(), *_integers(),
    ]  # fmt: skip


CASES = {case.name: case for case in cases()}


def goldens() -> dict[str, np.ndarray]:
    """Recorded results: "case.place"."""
    with np.load(GOLDENS) as file:
        return dict(file)


def by_onnxruntime(case: Case) -> dict[str, np.ndarray]:
    from tests.frontends.models import runtime

    twin = case.like or case
    results = runtime(twin.model(), twin.feeds)
    return {f"{case.name}.{k}": a for k, a in zip(case.wanted, results, strict=True)}


if __name__ == "__main__":
    found: dict[str, np.ndarray] = {}
    for case in CASES.values():
        try:
            found |= by_onnxruntime(case)
        except Exception as error:
            print(case.name, "FAILED", str(error)[:300])
    np.savez_compressed(GOLDENS, **found)
    print(len(found), "arrays")
