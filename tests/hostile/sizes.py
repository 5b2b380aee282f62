"""Ops that are asked for more than there is: terabytes, overflowing products, indices outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import numpy_helper

from tests.hostile.case import I64, Case, case, one_node

_BIG = 1 << 40


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def terabytes(_rng: np.random.Generator) -> Iterator[Case]:
    """Results that no memory holds, and sizes whose products wrap."""
    image = (1, 1, 4, 4)
    asked: dict[str, tuple[str, Any, dict[str, Any], dict[str, Any]]] = {
        "reshape-wraps": ("Reshape", (1, 4), {"s": _ints(1 << 32, 1 << 32)}, {}),
        "reshape-wraps-to-4": ("Reshape", (1, 4), {"s": _ints(1 << 62, 4, 4)}, {}),
        "reshape-two-free": ("Reshape", (1, 4), {"s": _ints(-1, -1)}, {}),
        "reshape-minus": ("Reshape", (1, 4), {"s": _ints(-2, 2)}, {}),
        "reshape-free-of-zero": ("Reshape", (1, 4), {"s": _ints(0, 0, 0, -1)}, {}),
        "tile": ("Tile", (1, 4), {"r": _ints(_BIG, 1)}, {}),
        "tile-wraps": ("Tile", (1, 4), {"r": _ints(1 << 62, 1 << 62)}, {}),
        "tile-minus": ("Tile", (1, 4), {"r": _ints(-1, 1)}, {}),
        "tile-rank": ("Tile", (1, 4), {"r": _ints(2)}, {}),
        "expand": ("Expand", (1, 4), {"s": _ints(_BIG, 4)}, {}),
        "expand-wraps": ("Expand", (1, 4), {"s": _ints(1 << 62, 1 << 62, 1, 4)}, {}),
        "expand-minus": ("Expand", (1, 4), {"s": _ints(-3, 4)}, {}),
        "pad": ("Pad", (1, 4), {"p": _ints(0, _BIG, 0, 0)}, {}),
        "pad-wraps": ("Pad", (1, 4), {"p": _ints(1 << 62, 1 << 62, 1 << 62, 1 << 62)}, {}),
        "pad-minus": ("Pad", (1, 4), {"p": _ints(0, -9, 0, 0)}, {}),
        "pad-count": ("Pad", (1, 4), {"p": _ints(0, 1, 0)}, {}),
        "pad-reflect": ("Pad", (1, 4), {"p": _ints(0, _BIG, 0, 0)}, {"mode": "reflect"}),
        "pad-reflect-1000": ("Pad", (1, 4), {"p": _ints(0, 1000, 0, 0)}, {"mode": "reflect"}),
        "pad-mode": ("Pad", (1, 4), {"p": _ints(0, 1, 0, 0)}, {"mode": "; rm -rf"}),
        "unsqueeze": ("Unsqueeze", (1, 4), {"a": _ints(1 << 62)}, {}),
        "unsqueeze-twice": ("Unsqueeze", (1, 4), {"a": _ints(0, 0)}, {}),
        "squeeze": ("Squeeze", (1, 4), {"a": _ints(1)}, {}),
        "space": ("DepthToSpace", image, {}, {"blocksize": 1 << 31}),
        "space-zero": ("DepthToSpace", image, {}, {"blocksize": 0}),
        "space-minus": ("SpaceToDepth", image, {}, {"blocksize": -1}),
        "flatten": ("Flatten", (1, 4), {}, {"axis": 99}),
        "transpose": ("Transpose", (1, 4), {}, {"perm": [0, 0]}),
        "transpose-far": ("Transpose", (1, 4), {}, {"perm": [0, 1 << 40]}),
        "concat-far": ("Concat", (1, 4), {}, {"axis": 1 << 40}),
        "topk": ("TopK", (1, 4), {"k": _ints(_BIG)}, {}),
        "topk-minus": ("TopK", (1, 4), {"k": _ints(-1)}, {}),
        "crop": ("CenterCropPad", (1, 4), {"s": _ints(_BIG, _BIG)}, {}),
    }
    for name, (op, shape, constants, attrs) in asked.items():
        made = one_node(name, op, [shape], constants, opset=18, outputs=1 + (op == "TopK"), **attrs)
        either = name in ("pad-reflect-1000",)
        yield case(f"sizes/{name}", made, compiles=None if either else False)
    yield from _resized()
    yield from _created()


def _resized() -> Iterator[Case]:
    image = [(1, 1, 4, 4)]
    scales = {
        "huge": (1, 1, 1e12, 1), "inf": (1, 1, np.inf, 1), "nan": (1, 1, np.nan, 1),
        "zero": (1, 1, 0, 1), "minus": (1, 1, -2, 1), "few": (1, 2), "wraps": (1, 1, 3e18, 3e18),
    }  # fmt: skip
    for name, values in scales.items():
        given = {"s": np.array(values, np.float32)}
        made = one_node(name, "Resize", image, given, inputs=["x0", "", "s"])
        yield case(f"sizes/resize-scale-{name}", made, compiles=False)
    for name, sizes in (("huge", (1, 1, _BIG, 4)), ("zero", (1, 1, 0, 4)), ("minus", (1, 1, -4, 4)),
                        ("wraps", (1, 1, 1 << 62, 1 << 62)), ("few", (4,))):  # fmt: skip
        given = {"s": _ints(*sizes)}
        made = one_node(name, "Resize", image, given, inputs=["x0", "", "", "s"])
        yield case(f"sizes/resize-size-{name}", made, compiles=None if name == "zero" else False)
    made = one_node("upsample", "Upsample", image, {"s": np.full(4, 1e9, np.float32)}, opset=9)
    yield case("sizes/upsample", made, compiles=False)


def _created() -> Iterator[Case]:
    """Constants that are made of nothing."""
    for name, shape in (("huge", (_BIG,)), ("wraps", (1 << 62, 1 << 62)), ("minus", (-3,)),
                        ("rank", (1,) * 80), ("gigabytes", (1 << 15, 1 << 15))):  # fmt: skip
        made = one_node(name, "ConstantOfShape", [], {"s": _ints(*shape)})
        yield case(f"sizes/constant-{name}", made, compiles=False)
    value = numpy_helper.from_array(np.zeros(0, np.float32), "value")
    made = one_node("novalue", "ConstantOfShape", [], {"s": _ints(3)}, value=value)
    yield case("sizes/constant-without-value", made, compiles=False)
    ranges = {
        "huge": _ints(0, 1 << 50, 1), "step-zero": _ints(0, 5, 0), "back": _ints(0, -(1 << 50), -1),
        "wraps": _ints(-(1 << 63), (1 << 63) - 1, 1), "nan": np.array([0, np.nan, 1], np.float32),
        "inf": np.array([0, np.inf, 1], np.float32), "tiny": np.array([0, 1, 1e-30], np.float32),
    }  # fmt: skip
    for name, ends in ranges.items():
        parts = {f"c{i}": np.array(v) for i, v in enumerate(ends)}
        yield case(f"sizes/range-{name}", one_node(name, "Range", [], parts), compiles=False)
    eye = one_node("eye", "EyeLike", [(1 << 20, 1 << 20)])
    yield case("sizes/eye", eye, compiles=False)
    hot = {"d": _ints(_BIG), "v": np.array([0, 1], np.float32)}
    made = one_node("hot", "OneHot", [(4,)], hot, kind=I64)
    yield case("sizes/one-hot", made, compiles=False)
    hot["d"] = _ints(-3)
    made = one_node("hot", "OneHot", [(4,)], hot, kind=I64)
    yield case("sizes/one-hot-minus", made, compiles=False)
    made = one_node("outer", "Mul", [(1 << 20, 1), (1, 1 << 20)])
    yield case("sizes/broadcast", made, compiles=False)
    made = one_node("product", "MatMul", [(1 << 20, 1), (1, 1 << 20)])
    yield case("sizes/matmul", made, compiles=False)
    made = one_node("sum", "Einsum", [(1 << 13,), (1 << 13,), (1 << 13,)], equation="a,b,c->abc")
    yield case("sizes/einsum", made, compiles=False)
    made = one_node("cut", "Compress", [(4,)], {"c": np.array([True] * 9)}, axis=0)
    yield case("sizes/compress", made, compiles=False)


def windows(_rng: np.random.Generator) -> Iterator[Case]:
    """Convolutions and pools whose windows cannot be."""
    weight = {"w": np.ones((2, 2, 3, 3), np.float32)}
    bad: dict[str, dict[str, Any]] = {
        "stride-0": {"strides": [0, 0]}, "stride-2-31": {"strides": [1 << 31, 1 << 31]},
        "stride-minus": {"strides": [-1, -1]}, "stride-2-62": {"strides": [1 << 62, 1]},
        "strides-3": {"strides": [1, 1, 1]}, "pad-minus": {"pads": [-1, -1, -1, -1]},
        "pad-minus-9": {"pads": [-9, -9, -9, -9]}, "pad-huge": {"pads": [_BIG] * 4},
        "pads-3": {"pads": [1, 1, 1]}, "dilation-0": {"dilations": [0, 0]},
        "dilation-huge": {"dilations": [_BIG, _BIG]}, "dilation-minus": {"dilations": [-1, 1]},
        "group-0": {"group": 0}, "group-minus": {"group": -1}, "group-3": {"group": 3},
        "group-2-62": {"group": 1 << 62}, "kernel-other": {"kernel_shape": [5, 5]},
        "kernel-0": {"kernel_shape": [0, 0]}, "auto-pad": {"auto_pad": "$(reboot)"},
        "padded-gigabytes": {"pads": [1 << 16] * 4, "strides": [1 << 15, 1 << 15]},
    }  # fmt: skip
    fine = ("stride-2-31", "stride-2-62", "kernel-other", "padded-gigabytes")
    for name, attrs in bad.items():
        made = one_node(name, "Conv", [(1, 2, 8, 8)], weight, **attrs)
        yield case(f"windows/conv-{name}", made, compiles=None if name in fine else False)
        made = one_node(name, "ConvTranspose", [(1, 2, 8, 8)], weight, **attrs)
        yield case(f"windows/transposed-{name}", made, compiles=None)
    for op in ("MaxPool", "AveragePool", "LpPool"):
        for name, attrs in bad.items():
            if name.startswith("group") or (op != "MaxPool" and name.startswith("dilation")):
                continue
            made = one_node(name, op, [(1, 2, 8, 8)], **{"kernel_shape": [3, 3], **attrs})
            refused = False if name.startswith("pad-minus") else None
            yield case(f"windows/{op.lower()}-{name}", made, compiles=refused)
    for name, kernel in (("huge", [_BIG, _BIG]), ("rank", [3] * 9), ("minus", [-3, -3])):
        made = one_node(name, "MaxPool", [(1, 2, 8, 8)], kernel_shape=kernel)
        yield case(f"windows/kernel-{name}", made, compiles=False)
    other = {"w": np.ones((2, 3, 3, 3), np.float32)}
    yield case("windows/channels", one_node("c", "Conv", [(1, 2, 8, 8)], other), compiles=False)
    none = {"w": np.ones((0, 2, 3, 3), np.float32)}
    yield case("windows/no-outputs", one_node("c", "Conv", [(1, 2, 8, 8)], none))
    flat = {"w": np.ones((2,), np.float32)}
    yield case("windows/rank-1", one_node("c", "Conv", [(1, 2, 8, 8)], flat), compiles=False)
    wide = {**weight, "b": np.ones(7, np.float32)}
    yield case("windows/bias", one_node("c", "Conv", [(1, 2, 8, 8)], wide), compiles=False)
    grow = {"output_padding": [1 << 31, 1 << 31], "strides": [2, 2]}
    made = one_node("t", "ConvTranspose", [(1, 2, 8, 8)], weight, **grow)
    yield case("windows/output-padding", made, compiles=False)
    made = one_node("t", "ConvTranspose", [(1, 2, 8, 8)], weight, output_shape=[_BIG, _BIG])
    yield case("windows/output-shape", made, compiles=False)
    unfold = {"i": _ints(_BIG, _BIG), "b": _ints(1, 1)}
    yield case("windows/col2im", one_node("c", "Col2Im", [(1, 4, 4)], unfold, opset=18),
               compiles=False)  # fmt: skip


def indices(_rng: np.random.Generator) -> Iterator[Case]:
    """Places outside of what is indexed, and parts that do not add up."""
    for name, places in (("beyond", (0, 4)), ("minus", (-5, 0)), ("huge", (1 << 62, 0)),
                         ("lowest", (-(1 << 63), 0))):  # fmt: skip
        given = {"i": _ints(*places)}
        for op in ("Gather", "GatherElements"):
            shape = (4,) if op == "GatherElements" else (4, 2)
            yield case(f"indices/{op}-{name}", one_node(name, op, [shape], given, axis=0),
                       compiles=False)  # fmt: skip
        row = {"i": _ints(*places).reshape(2, 1)}
        yield case(f"indices/GatherND-{name}", one_node(name, "GatherND", [(4, 2)], row),
                   compiles=False)  # fmt: skip
        row["u"] = np.ones((2, 2), np.float32)
        made = one_node(name, "ScatterND", [(4, 2)], row)
        yield case(f"indices/ScatterND-{name}", made, compiles=False)
        given["u"] = np.ones(2, np.float32)
        made = one_node(name, "ScatterElements", [(4,)], given, axis=0)
        yield case(f"indices/ScatterElements-{name}", made, compiles=False)
    for name, parts in (("few", (1, 2)), ("many", (3, 3)), ("minus", (-1, 5)), ("zero", (0, 4)),
                        ("wraps", (1 << 62, 1 << 62))):  # fmt: skip
        made = one_node(name, "Split", [(1, 4)], {"s": _ints(*parts)}, outputs=2, axis=1)
        yield case(f"indices/split-{name}", made, compiles=None if name == "zero" else False)
    yield case("indices/split-axis", one_node("s", "Split", [(1, 4)], outputs=2, axis=7),
               compiles=False)  # fmt: skip
    top, low = (1 << 63) - 1, -(1 << 63)
    for name, (start, end, axis, step) in {
        "all": (0, top, 1, 1), "back": (top, low, 1, -1), "step-0": (0, 4, 1, 0),
        "step-huge": (0, top, 1, top), "step-lowest": (top, low, 1, low), "empty": (3, 1, 1, 1),
        "axis": (0, 1, 9, 1),
    }.items():  # fmt: skip
        ends = {k: _ints(v) for k, v in zip("abcd", (start, end, axis, step), strict=True)}
        bad = name in ("step-0", "axis")
        made = one_node(name, "Slice", [(1, 4)], ends)
        yield case(f"indices/slice-{name}", made, compiles=False if bad else None)
    for op in ("Softmax", "ReduceSum", "ArgMax", "CumSum", "Concat", "LayerNormalization"):
        constants = {"LayerNormalization": {"s": np.ones(4, np.float32)},
                     "CumSum": {"a": _ints(99)}, "ReduceSum": {"a": _ints(99)}}  # fmt: skip
        attrs = {} if op in ("CumSum", "ReduceSum") else {"axis": 99}
        yield case(f"indices/{op}-axis", one_node("a", op, [(1, 4)], constants.get(op), **attrs),
                   compiles=False)  # fmt: skip
