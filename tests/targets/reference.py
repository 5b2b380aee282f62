"""Plain numpy references of the kernels, after the numbers contract."""

from __future__ import annotations

import numpy as np

from targets.kernels.spec import ConvSpec, ConvTransposeSpec, Epilogue


def conv_accumulators(x: np.ndarray, w: np.ndarray, spec: ConvSpec) -> np.ndarray:
    """``sum (x - zero_point) * w`` as int64 (u8) or float64 (f32), NHWC."""
    kind = np.int64 if spec.in_dtype == "u8" else np.float64
    top, left, bottom, right = spec.pads
    zero = spec.in_zero_point if spec.in_dtype == "u8" else 0
    real = np.pad(x.astype(kind) - zero, ((0, 0), (top, bottom), (left, right), (0, 0)))
    out = np.zeros((spec.n, spec.oh, spec.ow, spec.oc), kind)
    per, n = spec.c // spec.groups, spec.oc // spec.groups
    (sh, sw), (dh, dw) = spec.stride, spec.dilation
    for i in range(spec.kh):
        for j in range(spec.kw):
            rows = slice(i * dh, i * dh + (spec.oh - 1) * sh + 1, sh)
            cols = slice(j * dw, j * dw + (spec.ow - 1) * sw + 1, sw)
            part = real[:, rows, cols]
            for g in range(spec.groups):
                at = slice(g * n, (g + 1) * n)
                out[..., at] += part[..., g * per : (g + 1) * per] @ w[at, :, i, j].astype(kind).T
    return out


def transposed_accumulators(x: np.ndarray, w: np.ndarray, spec: ConvTransposeSpec) -> np.ndarray:
    """Scatters every input pixel, then crops the padding."""
    (sh, sw), (dh, dw), (top, left, bottom, right) = spec.stride, spec.dilation, spec.pads
    full_h = (spec.h - 1) * sh + dh * (spec.kh - 1) + 1 + spec.output_padding[0]
    full_w = (spec.w - 1) * sw + dw * (spec.kw - 1) + 1 + spec.output_padding[1]
    kind = np.int64 if spec.in_dtype == "u8" else np.float64
    full = np.zeros((spec.n, full_h, full_w, spec.oc), kind)
    per, n = spec.c // spec.groups, spec.oc // spec.groups
    for i in range(spec.kh):
        for j in range(spec.kw):
            rows = slice(i * dh, i * dh + (spec.h - 1) * sh + 1, sh)
            cols = slice(j * dw, j * dw + (spec.w - 1) * sw + 1, sw)
            for g in range(spec.groups):
                at = slice(g * per, (g + 1) * per)
                part = x[..., at].astype(kind) @ w[at, :, i, j].astype(kind)
                full[:, rows, cols, g * n : (g + 1) * n] += part
    return full[:, top : full_h - bottom, left : full_w - right]


def finish(
    acc: np.ndarray,
    epi: Epilogue,
    bias: np.ndarray,
    multiplier: np.ndarray | None = None,
    ratio: np.ndarray | None = None,
    residual: np.ndarray | None = None,
) -> np.ndarray:
    """The epilogue on accumulators (without zero-point terms), channels last."""
    total = acc + bias
    if multiplier is None:
        real = total.astype(np.float64)
        real = real if residual is None else real + residual
        return np.clip(real, epi.lo, epi.hi).astype(np.float32)
    if epi.residual == "u8":
        assert residual is not None
        assert ratio is not None
        shifted = (residual.astype(np.int32) - epi.residual_zero_point).astype(np.float32)
        total = total + np.rint(shifted * ratio).astype(np.int64)
    assert np.abs(total).max() < 2**31
    real = total.astype(np.int32).astype(np.float32) * multiplier
    if epi.out == "f32":
        real = real if residual is None else real + residual
        return np.clip(real, np.float32(epi.lo), np.float32(epi.hi))
    lo, hi = epi.bounds
    y = np.clip(np.rint(real) + np.float32(epi.out_zero_point), np.float32(lo), np.float32(hi))
    return y.astype(np.int32).astype({"u8": np.uint8, "s8": np.int8}[epi.out])
