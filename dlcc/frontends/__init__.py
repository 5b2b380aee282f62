"""Ways into the IR: ONNX files, the IR's own text form, torch modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph

ShapeOptions = Mapping[str, int | tuple[int, ...]]


def load_graph(
    model: str | Path | Any,
    *,
    shapes: ShapeOptions | None = None,
    constants: Mapping[str, Any] | None = None,
    remarks: list[str] | None = None,
) -> Graph:
    """Read a network from an ``.onnx`` or ``.dlir`` file, or an ``onnx.ModelProto``.

    Args:
        model: the file (other suffixes are tried as ONNX), or the model in memory.
        shapes: sizes of symbolic dimensions by name, or whole shapes by input name (ONNX only).
        constants: contents of inputs that are always the same, by name (ONNX only).
        remarks: gets one line per assumption that was made.

    Raises:
        DlccError: the file is missing or damaged, or holds something that dlcc does not support.
    """
    if not isinstance(model, str | Path):
        from dlcc.frontends.onnx import import_onnx

        return import_onnx(model, shapes=shapes, constants=constants, remarks=remarks)
    file = Path(model)
    if not file.is_file():
        why = "it is a folder" if file.is_dir() else "there is no such file"
        raise DlccError(
            ExitCode.INPUT_FILE,
            "cannot read the model",
            where=str(file),
            why=why,
            fix="give the path of an .onnx or .dlir file",
        )
    if file.suffix == ".dlir":
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
        return graph
    from dlcc.frontends.onnx import import_onnx

    return import_onnx(file, shapes=shapes, constants=constants, remarks=remarks)


__all__ = ["ShapeOptions", "load_graph"]
