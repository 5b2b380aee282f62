"""Importers of ``com.microsoft``: what ONNX Runtime's optimisers and quantisers write.

Each operator becomes ordinary ones, so that passes, encodings and kernels see nothing new; its
meaning is that of ONNX Runtime's ContribOperators.md. The quantised operators that are plain layers
on codes (QLinearAdd, QGemm, ...) stand beside those of ONNX in :mod:`dlcc.ops.qlinear`.
"""

from __future__ import annotations

import dlcc.ops  # noqa: F401  (first: its importers load modules of the frontends)
from dlcc.frontends.contrib import attention, layers, packed, quantised, refused

__all__ = ["attention", "layers", "packed", "quantised", "refused"]
