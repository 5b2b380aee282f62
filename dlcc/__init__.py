"""dlcc, a deep-learning compression compiler: an ONNX file in, a small C library out.

::

    import dlcc
    dlcc.compile("model.onnx", "out", bits=8, calibration="calib.npz")
    y = dlcc.load("out")(x)

Names are loaded at first use, so that ``import dlcc`` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "CompileOptions": "dlcc.driver",
    "CompileResult": "dlcc.driver",
    "DlccError": "dlcc.errors",
    "ExitCode": "dlcc.errors",
    "Graph": "dlcc.ir",
    "Node": "dlcc.ir",
    "TensorType": "dlcc.ir",
    "Value": "dlcc.ir",
    "compile": "dlcc.driver",
    "execute": "dlcc.analysis.execute",
    "from_torch": "dlcc.frontends.torch",
    "import_onnx": "dlcc.frontends.onnx",
    "load": "dlcc.runtime.loader",
    "load_graph": "dlcc.frontends",
    "optimise": "dlcc.driver",
    "sensitivity": "dlcc.driver",
    "tune": "dlcc.driver",
    "verify": "dlcc.analysis.verify",
}
_PACKAGES = {"passes", "targets"}

__all__ = ["__version__", *sorted(_EXPORTS), *sorted(_PACKAGES)]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(name)
    raise AttributeError(f"module 'dlcc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
