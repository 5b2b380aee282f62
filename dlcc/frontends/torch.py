"""torch modules, by way of ONNX."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Graph


def from_torch(
    module: Any,
    example_inputs: Any,
    *,
    name: str = "",
    input_names: Sequence[str] | None = None,
    remarks: list[str] | None = None,
) -> Graph:
    """Import a torch module as it computes in evaluation mode on tensors of these shapes.

    The module is exported with ``torch.onnx.export``: with torch's newer exporter where its
    dependency onnxscript is installed, else by tracing (which fixes the branches that the example
    takes). Its training flags are as before afterwards.

    Args:
        module: a ``torch.nn.Module`` or scripted module.
        example_inputs: one tensor or a tuple of them; only shapes and dtypes matter.
        name: name of the graph; by default the module's class.
        input_names: names of the inputs; by default ``x``, or ``x0``, ``x1``, ...
        remarks: gets one line per assumption of the import.

    Raises:
        DlccError: torch is missing, the module cannot be exported, or uses what dlcc does not
            support.
    """
    try:
        import torch
    except ImportError:
        raise DlccError(
            ExitCode.USAGE,
            "torch is not installed",
            fix="pip install 'dlcc[torch]'",
        ) from None
    if not isinstance(module, torch.nn.Module):
        raise DlccError(
            ExitCode.USAGE,
            "from_torch takes a torch.nn.Module",
            why=f"given {type(module).__name__}",
        )
    single = isinstance(example_inputs, torch.Tensor)
    inputs = (example_inputs,) if single else tuple(example_inputs)
    names = list(input_names or (["x"] if single else [f"x{k}" for k in range(len(inputs))]))
    states = {part: part.training for part in module.modules()}
    module.eval()
    try:
        model = _exported(torch, module, inputs, names)
    finally:
        for part, training in states.items():
            part.training = training
    return import_onnx(model, remarks=remarks, name=name or type(module).__name__)


def _exported(
    torch: Any, module: Any, inputs: tuple[Any, ...], names: list[str]
) -> onnx.ModelProto:
    """The module as an ONNX model in memory."""
    dynamo = bool(importlib.util.find_spec("onnxscript"))
    dynamo = dynamo and not isinstance(module, torch.jit.ScriptModule)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if dynamo:
                return _by_exporter(torch, module, inputs, names)
            file = io.BytesIO()
            torch.onnx.export(
                module, inputs, file, input_names=names, dynamo=False, do_constant_folding=False
            )
            return onnx.load_model_from_string(file.getvalue())
    except Exception as error:  # whatever the module or the exporter raises
        raise DlccError(
            ExitCode.MODEL,
            "torch cannot export the module to ONNX",
            where=type(module).__name__,
            why=_cause(error),
            fix="export it with torch.onnx.export yourself and compile the .onnx file",
        ) from error
    finally:
        logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """The first line of what started it: torch wraps the module's own error several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _by_exporter(
    torch: Any, module: Any, inputs: tuple[Any, ...], names: list[str]
) -> onnx.ModelProto:
    program = torch.onnx.export(
        module, inputs, input_names=names, dynamo=True, verbose=False, optimize=True
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "module.onnx"
        program.save(str(path), external_data=True)
        return onnx.load(str(path))


__all__ = ["from_torch"]
