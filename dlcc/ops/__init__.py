"""All ops. One family is one module; every module of this package is loaded here."""

from __future__ import annotations

import importlib
import pkgutil

from dlcc.ops.base import OPS, Interval, Op, Quantised, build, op_of, type_error

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["OPS", "Interval", "Op", "Quantised", "build", "op_of", "type_error"]
