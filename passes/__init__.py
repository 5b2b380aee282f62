"""Compression and optimisation passes: each file of this package holds one pass.

Every module is loaded here, so ``passes.Quantize`` and ``quantize{...}`` in pipeline text are the
same class. A module that cannot be imported raises. Packages outside dlcc add passes through the
entry-point group ``dlcc.plugins`` (:func:`load_plugins`).
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil

from dlcc.errors import DlccError, ExitCode
from passes.base import (
    Pass,
    PassContext,
    PassResult,
    Progress,
    Remark,
    describe,
    option,
    registered_passes,
)
from passes.manager import OutputError, PassManager, PassRecord, PipelineResult
from passes.pipeline import as_passes, parse_pipeline, print_pass, print_pipeline
from passes.recipe import Recipe

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

PLUGIN_GROUP = "dlcc.plugins"


@functools.cache
def load_plugins() -> tuple[str, ...]:
    """Import every installed plugin once, which registers its passes; returns their names.

    Raises:
        DlccError: a plugin cannot be imported.
    """
    names = []
    for point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        try:
            point.load()
        except Exception as error:
            raise DlccError(
                ExitCode.PASS,
                f"plugin {point.name!r} cannot be loaded",
                where=point.value,
                why=f"{type(error).__name__}: {error}",
                fix="mend or uninstall the package that provides it",
            ) from error
        names.append(point.name)
    return tuple(names)


def __getattr__(name: str) -> type[Pass]:
    """A pass class by its Python name, e.g. ``passes.Quantize``."""
    for cls in registered_passes().values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *(cls.__name__ for cls in registered_passes().values())])


__all__ = [
    "PLUGIN_GROUP",
    "OutputError",
    "Pass",
    "PassContext",
    "PassManager",
    "PassRecord",
    "PassResult",
    "PipelineResult",
    "Progress",
    "Recipe",
    "Remark",
    "as_passes",
    "describe",
    "load_plugins",
    "option",
    "parse_pipeline",
    "print_pass",
    "print_pipeline",
    "registered_passes",
]
