"""More ops that are asked for the absurd, and ops over axes of no elements."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from string import ascii_letters
from typing import Any

import numpy as np

from tests.hostile.case import I64, Case, case, one_node

_BIG = 1 << 40
_IMAGE = (1, 2, 4, 4)

Asked = tuple[str, list[Any], dict[str, np.ndarray], dict[str, Any]]


def _i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _f(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def requests(_rng: np.random.Generator) -> Iterator[Case]:
    """Sizes, counts and radii that cannot be meant."""
    lstm = {"w": _f(1, 12, 4), "r": _f(1, 12, 3)}
    asked: dict[str, Asked] = {
        "hann-window": ("HannWindow", [], {"n": np.array(_BIG)}, {}),
        "hamming-window-minus": ("HammingWindow", [], {"n": np.array(-5)}, {}),
        "blackman-window": ("BlackmanWindow", [], {"n": np.array(1 << 62)}, {}),
        "mel-weights": ("MelWeightMatrix", [], {
            "a": np.array(_BIG), "b": np.array(_BIG), "c": np.array(16000),
            "d": np.float32(1), "e": np.float32(8000)}, {}),
        "dft-length": ("DFT", [(1, 8, 1)], {"n": np.array(_BIG)}, {}),
        "dft-length-0": ("DFT", [(1, 8, 1)], {"n": np.array(0)}, {}),
        "dft-axis": ("DFT", [(1, 8, 1)], {}, {"axis": 77}),
        "stft-step-0": ("STFT", [(1, 64, 1)], {"s": np.array(0), "w": _f(16)}, {}),
        "stft-step-minus": ("STFT", [(1, 64, 1)], {"s": np.array(-1), "w": _f(16)}, {}),
        "lrn-size": ("LRN", [_IMAGE], {}, {"size": _BIG}),
        "lrn-size-0": ("LRN", [_IMAGE], {}, {"size": 0}),
        "group-norm-0": ("GroupNormalization", [_IMAGE], {"s": _f(2), "b": _f(2)},
                         {"num_groups": 0}),
        "group-norm-many": ("GroupNormalization", [_IMAGE], {"s": _f(2), "b": _f(2)},
                            {"num_groups": 7}),
        "max-unpool": ("MaxUnpool", [_IMAGE], {
            "i": np.zeros(_IMAGE, np.int64), "s": _i(1, 2, _BIG, _BIG)}, {"kernel_shape": [2, 2]}),
        "grid": ("AffineGrid", [(1, 2, 3)], {"s": _i(1, 1, _BIG, _BIG)}, {}),
        "roi-align": ("RoiAlign", [_IMAGE], {"r": _f(1, 4), "b": _i(0)},
                      {"output_height": 1 << 31, "output_width": 1 << 31}),
        "roi-align-samples": ("RoiAlign", [_IMAGE], {"r": _f(1, 4), "b": _i(0)},
                              {"sampling_ratio": 1 << 31}),
        "roi-align-batch": ("RoiAlign", [_IMAGE], {"r": _f(1, 4), "b": _i(9)}, {}),
        "random": ("RandomNormal", [], {}, {"shape": [_BIG, _BIG]}),
        "multinomial": ("Multinomial", [(1, 4)], {}, {"sample_size": 1 << 31}),
        "lstm-hidden": ("LSTM", [(5, 1, 4)], lstm, {"hidden_size": 1 << 31}),
        "lstm-hidden-minus": ("LSTM", [(5, 1, 4)], lstm, {"hidden_size": -3}),
        "lstm-direction": ("LSTM", [(5, 1, 4)], lstm, {"hidden_size": 3, "direction": "$(reboot)"}),
        "lstm-activations": ("LSTM", [(5, 1, 4)], lstm,
                             {"hidden_size": 3, "activations": ["Relu"]}),
        "lstm-steps": ("LSTM", [(_BIG, 1, 4)], lstm, {"hidden_size": 3}),
        "one-hot-axis": ("OneHot", [(4,)], {"d": _i(3), "v": _f(2)}, {"axis": 99}),
        "reverse-lengths": ("ReverseSequence", [(4, 2)], {"n": _i(9, -1)}, {}),
        "quantize-block": ("QuantizeLinear", [(1, 4)], {"s": _f(1, 4)}, {"block_size": _BIG}),
        "quantize-block-minus": ("QuantizeLinear", [(1, 4)], {"s": _f(1, 4)}, {"block_size": -1}),
        "attention-heads": ("Attention", [(1, 2, 4)] * 3, {},
                            {"q_num_heads": 0, "kv_num_heads": 0}),
        "attention-heads-many": ("Attention", [(1, 2, 4)] * 3, {},
                                 {"q_num_heads": 1 << 40, "kv_num_heads": 1}),
        "shrink-nan": ("Shrink", [(1, 4)], {}, {"lambd": float("nan")}),
        "clip-swapped": ("Clip", [(1, 4)], {"a": np.float32(2), "b": np.float32(-2)}, {}),
        "clip-nan": ("Clip", [(1, 4)], {"a": np.float32(np.nan), "b": np.float32(np.nan)}, {}),
        "bit-shift-far": ("BitShift", [], {"a": np.uint32([1]), "n": np.uint32([200])},
                          {"direction": "RIGHT"}),
        "mod-zero": ("Mod", [], {"a": np.int32([5, -5]), "b": np.int32([0, 0])}, {}),
        "div-zero": ("Div", [], {"a": np.int32([5, -(1 << 31)]), "b": np.int32([0, -1])}, {}),
        "top-k-minus-axis": ("TopK", [(1, 4)], {"k": _i(2)}, {"axis": -9}),
        "cumsum-axis": ("CumSum", [(1, 4)], {"a": np.array(-7)}, {}),
        "trilu-far": ("Trilu", [(3, 4)], {"k": np.array((1 << 63) - 1)}, {}),
        "trilu-near": ("Trilu", [(3, 4)], {"k": np.array(-(1 << 63))}, {}),
        "eye-like-far": ("EyeLike", [(3, 4)], {}, {"k": -(1 << 62)}),
        "loss-weights": ("NegativeLogLikelihoodLoss", [(1, 4)], {"t": _i(99)}, {}),
    }  # fmt: skip
    for name, (op, shapes, constants, attrs) in asked.items():
        opset = 23 if op == "Attention" else 21 if "block_size" in attrs else 18
        outputs = 2 if op == "TopK" else 1
        made = one_node(name, op, shapes, constants, opset=opset, outputs=outputs, **attrs)
        yield case(f"requests/{name}", made)
    yield from _einsums()


def _einsums() -> Iterator[Case]:
    """Dozens of letters: results, and products on the way, of 2^26 and 2^52 numbers."""
    for count, extent in ((26, 1), (52, 1), (26, 2), (52, 2), (20, 8)):
        letters = ascii_letters[:count]
        for name, equation in (
            ("outer", ",".join(letters) + "->" + letters),
            ("inner", ",".join(a + b for a, b in pairwise(letters)) + "->"),
        ):
            operands = equation.split("->")[0].split(",")
            shapes = [(extent,) * len(part) for part in operands]
            made = one_node(name, "Einsum", shapes, equation=equation)
            yield case(f"requests/einsum-{name}-{count}-of-{extent}", made, slow=True)
    yield case("requests/einsum-letters", one_node("e", "Einsum", [(1,) * 26],
               equation=f"{ascii_letters[:26]}->{ascii_letters[25::-1]}"), slow=True)  # fmt: skip


def empty(_rng: np.random.Generator) -> Iterator[Case]:
    """Axes of no elements: results without elements, or sums over nothing."""
    asked: dict[str, Asked] = {
        "matmul-inner": ("MatMul", [(2, 0), (0, 3)], {}, {}),
        "matmul-rows": ("MatMul", [(0, 4)], {"w": _f(4, 3)}, {}),
        "gemm": ("Gemm", [(2, 0)], {"w": _f(0, 3), "b": _f(3)}, {}),
        "conv-batch": ("Conv", [(0, 2, 4, 4)], {"w": _f(3, 2, 3, 3)}, {}),
        "conv-channels": ("Conv", [(1, 0, 4, 4)], {"w": _f(3, 0, 3, 3)}, {}),
        "conv-height": ("Conv", [(1, 2, 0, 4)], {"w": _f(3, 2, 1, 1)}, {}),
        "conv-kernel": ("Conv", [_IMAGE], {"w": _f(3, 2, 0, 3)}, {}),
        "pool": ("MaxPool", [(1, 2, 0, 4)], {}, {"kernel_shape": [1, 1]}),
        "global-pool": ("GlobalAveragePool", [(1, 2, 0, 4)], {}, {}),
        "sum": ("ReduceSum", [(2, 0)], {"a": _i(1)}, {}),
        "mean": ("ReduceMean", [(2, 0)], {"a": _i(1)}, {}),
        "max": ("ReduceMax", [(2, 0)], {"a": _i(1)}, {}),
        "argmax": ("ArgMax", [(2, 0)], {}, {"axis": 1}),
        "softmax": ("Softmax", [(2, 0)], {}, {}),
        "layer-norm": ("LayerNormalization", [(2, 0)], {"s": _f(0)}, {}),
        "concat": ("Concat", [(1, 0), (1, 4)], {}, {"axis": 1}),
        "gather": ("Gather", [(0, 4)], {"i": _i(0)}, {}),
        "gather-none": ("Gather", [(3, 4)], {"i": _i()}, {}),
        "reshape": ("Reshape", [(0, 4)], {"s": _i(0, -1)}, {}),
        "reshape-zero": ("Reshape", [(0, 4)], {"s": _i(2, 0)}, {"allowzero": 1}),
        "top-k": ("TopK", [(1, 4)], {"k": _i(0)}, {}),
        "top-k-of-none": ("TopK", [(1, 0)], {"k": _i(1)}, {}),
        "tile": ("Tile", [(1, 4)], {"r": _i(0, 1)}, {}),
        "expand": ("Expand", [(1, 4)], {"s": _i(0, 4)}, {}),
        "resize": ("Resize", [(1, 1, 0, 4)], {"r": _f(0), "s": _f(4) * 2}, {}),
        "lstm": ("LSTM", [(0, 1, 4)], {"w": _f(1, 12, 4), "r": _f(1, 12, 3)}, {"hidden_size": 3}),
        "lstm-batch": ("LSTM", [(2, 0, 4)], {"w": _f(1, 12, 4), "r": _f(1, 12, 3)},
                       {"hidden_size": 3}),
        "lstm-units": ("LSTM", [(2, 1, 4)], {"w": _f(1, 0, 4), "r": _f(1, 0, 0)},
                       {"hidden_size": 0}),
        "scatter": ("ScatterND", [(3, 4)], {"i": _i().reshape(0, 1), "u": _f(0, 4)}, {}),
        "pad": ("Pad", [(0, 4)], {"p": _i(1, 0, 1, 0)}, {}),
        "pad-reflect": ("Pad", [(0, 4)], {"p": _i(1, 0, 1, 0)}, {"mode": "reflect"}),
        "einsum": ("Einsum", [(2, 0), (0, 3)], {}, {"equation": "ij,jk->ik"}),
        "broadcast": ("Add", [(0, 4), (1, 1)], {}, {}),
        "broadcast-two": ("Add", [(0, 4), (2, 4)], {}, {}),
        "cumsum": ("CumSum", [(2, 0)], {"a": np.array(1)}, {}),
        "one-hot": ("OneHot", [(0,)], {"d": _i(3), "v": _f(2)}, {}),
        "transpose": ("Transpose", [(0, 4)], {}, {}),
        "batch-norm": ("BatchNormalization", [(1, 0, 2, 2)],
                       {"s": _f(0), "b": _f(0), "m": _f(0), "v": _f(0)}, {}),
        "space": ("DepthToSpace", [(1, 0, 2, 2)], {}, {"blocksize": 2}),
    }  # fmt: skip
    for name, (op, shapes, constants, attrs) in asked.items():
        kind = I64 if op == "OneHot" else 1
        made = one_node(
            name, op, shapes, constants, opset=18, kind=kind, outputs=1 + (op == "TopK"), **attrs
        )
        yield case(f"empty/{name}", made)


def weights(_rng: np.random.Generator) -> Iterator[Case]:
    """NaN and infinity, and the largest and smallest numbers, in the weights of layers."""
    layers: dict[str, Asked] = {
        "Conv": ("Conv", [_IMAGE], {"w": _f(3, 2, 3, 3)}, {}),
        "Gemm": ("Gemm", [(1, 4)], {"w": _f(4, 3), "b": _f(3)}, {}),
        "LSTM": ("LSTM", [(3, 1, 4)], {"w": _f(1, 12, 4), "r": _f(1, 12, 3)}, {"hidden_size": 3}),
        "BatchNormalization": ("BatchNormalization", [_IMAGE],
                               {"s": _f(2), "b": _f(2), "m": _f(2), "v": _f(2)}, {}),
        "LayerNormalization": ("LayerNormalization", [(1, 4)], {"s": _f(4)}, {}),
        "PRelu": ("PRelu", [(1, 4)], {"s": _f(4)}, {}),
        "Add": ("Add", [(1, 4)], {"a": _f(4)}, {}),
        "Clip": ("Clip", [(1, 4)], {"a": np.float32(-1) * _f(1)[0], "b": _f(1)[0]}, {}),
        "Pad": ("Pad", [(1, 4)], {"p": _i(0, 1, 0, 1), "v": _f(1)[0]}, {}),
    }  # fmt: skip
    for layer, (op, shapes, constants, attrs) in layers.items():
        for name, value in (("nan", np.nan), ("inf", np.inf), ("largest", 3.4e38),
                            ("smallest", 1e-45)):  # fmt: skip
            changed = {k: np.array(v) for k, v in constants.items()}
            last = changed[list(changed)[-1]]
            last.reshape(-1)[:1] = value
            yield case(f"weights/{layer}-{name}", one_node(name, op, shapes, changed, **attrs))
