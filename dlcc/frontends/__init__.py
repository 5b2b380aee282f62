"""Ways into the IR: ONNX files, the IR's own text form, torch modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.profiles import MOST
from dlcc.ir import Graph

ShapeOptions = Mapping[str, Any]
"""By the name of a symbolic dimension its size, by the name of an input its shape; or several."""


def load_graph(
    model: str | Path | Any,
    *,
    shapes: ShapeOptions | None = None,
    constants: Mapping[str, Any] | None = None,
    remarks: list[str] | None = None,
    doubles: bool = True,
) -> Graph:
    """Read a network from an ``.onnx`` or ``.dlir`` file, or an ``onnx.ModelProto``.

    Args:
        model: the file (other suffixes are tried as ONNX), or the model in memory.
        shapes: sizes of symbolic dimensions by name, or whole shapes by input name (ONNX only).
        constants: contents of inputs that are always the same, by name (ONNX only).
        remarks: gets one line per assumption that was made.
        doubles: float64 is computed in float64, else in float32 (ONNX only).

    Raises:
        DlccError: the file is missing or damaged, or holds something that dlcc does not support.
    """
    (graph,) = load_profiles(
        model, shapes=shapes, constants=constants, remarks=remarks, most=1, doubles=doubles
    )
    return graph


def load_profiles(
    model: str | Path | Any,
    *,
    shapes: ShapeOptions | None = None,
    constants: Mapping[str, Any] | None = None,
    remarks: list[str] | None = None,
    most: int = MOST,
    doubles: bool = True,
) -> list[Graph]:
    """As :func:`load_graph`, once for each combination of the sizes in ``shapes``.

    Args:
        model: the file or model.
        shapes: the sizes or shapes, one or several of each (ONNX only).
        constants: contents of inputs that are always the same.
        remarks: gets one line per assumption that was made.
        most: of the shape profiles.
        doubles: float64 is computed in float64, else in float32 (ONNX only).

    Raises:
        DlccError: as :func:`load_graph`; USAGE for more profiles.
    """
    file = Path(model) if isinstance(model, str | Path) else None
    if file is None or (file.is_file() and file.suffix != ".dlir"):
        from dlcc.frontends.onnx import import_profiles

        return import_profiles(
            model, shapes=shapes, constants=constants, remarks=remarks, most=most, doubles=doubles
        )
    if not file.is_file():
        why = "it is a folder" if file.is_dir() else "there is no such file"
        raise DlccError(
            ExitCode.INPUT_FILE,
            "cannot read the model",
            where=str(file),
            why=why,
            fix="give the path of an .onnx or .dlir file",
        )
    for option, given in (("shape", shapes), ("constant", constants)):
        if given:
            raise DlccError(
                ExitCode.USAGE,
                f"{option}s cannot be set for a .dlir file",
                where=str(file),
                why=f"its {option}s are already fixed",
                fix=f"leave --{option} out, or compile the .onnx file",
            )
    import dlcc.ops  # noqa: F401  (registers the ops)
    from dlcc.analysis.verify import verify_file
    from dlcc.ir.text import load

    graph = load(file)
    verify_file(graph, str(file))
    if any(not v.type.elements for v in graph.values()):
        from dlcc.frontends.fold import fold_nodes

        graph.set_outputs(fold_nodes(graph, 0, graph.outputs), graph.output_names)
    return [graph]


__all__ = ["ShapeOptions", "load_graph", "load_profiles"]
