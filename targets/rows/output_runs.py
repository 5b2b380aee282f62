"""Rows of the kernel table that run weights whose codes stand for runs of outputs or inputs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dlcc.ir import Node, ProductCodebook, ResidualCodebook, Value
from dlcc.ir.compressed import run_shape
from dlcc.ir.packing import unpack_bits
from dlcc.lowering.kernel import KernelPlan
from targets.kernels import output_runs
from targets.kernels.output_runs import RunCodes
from targets.rows import layers
from targets.rows.base import IsaRow


def _encoding(node: Node) -> ProductCodebook | ResidualCodebook:
    encoding = node.input(1).type.encoding
    assert isinstance(encoding, ProductCodebook | ResidualCodebook)
    return encoding


def _form(node: Node) -> tuple[int, int, int, bool]:
    """Length of a run, stages, entries of a codebook, whether one serves all blocks."""
    encoding, constant = _encoding(node), node.input(1).constant
    assert constant is not None
    entries = int(constant.parts["codebook"].shape[1])
    if isinstance(encoding, ResidualCodebook):
        return encoding.length, encoding.stages, entries, True
    return encoding.length, 1, entries, encoding.shared


def _coded(weight: Value, encoding: ProductCodebook | ResidualCodebook) -> RunCodes:
    constant = weight.constant
    assert constant is not None
    inputs = encoding.along == "input"
    columns, blocks = run_shape(weight.type.shape, encoding.length, encoding.name, encoding.along)
    book = np.asarray(constant.parts["codebook"])
    stages = encoding.stages if isinstance(encoding, ResidualCodebook) else 1
    count = stages * columns * blocks
    codes = unpack_bits(constant.parts["values"], count, encoding.bits)
    books = book[:, None] if isinstance(encoding, ResidualCodebook) else book[None]
    if inputs:  # [stages, outputs, runs]
        return RunCodes(codes.reshape(stages, columns, blocks).swapaxes(1, 2), books, inputs)
    return RunCodes(codes.reshape(stages, columns, blocks), books)


class OutputRunsRow(IsaRow):
    """Linear layers of one row of float32 activations by product or residual codes of outputs."""

    name: ClassVar[str] = "output-runs"
    ops: ClassVar[tuple[str, ...]] = ("linear",)
    encodings: ClassVar[tuple[str, ...]] = (ProductCodebook.name, ResidualCodebook.name)

    def serves(self, node: Node) -> bool:
        """Not asked about runs along the inputs."""
        return super().serves(node) and _encoding(node).along == "output"

    def refuses(self, node: Node) -> str:
        """Quantised activations, several rows, runs that fill no vectors."""
        spec, encoding = layers.conv_spec(node), _encoding(node)
        runs = (encoding.length, encoding.along)
        return layers.refusal(node) or output_runs.refusal(spec, *runs)

    def cost(self, node: Node) -> float:
        """A multiply-add for each code, and the bytes of codes and books."""
        inputs = _encoding(node).along == "input"
        form = _form(node)
        return output_runs.output_runs_cost(layers.conv_spec(node), self.isa, form, inputs=inputs)

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        spec, bias = layers.conv_spec(node), layers.float_bias(node)
        return output_runs.output_runs(spec, self.isa, _coded(node.input(1), _encoding(node)), bias)


class InputRunsRow(OutputRunsRow):
    """The same by codes of runs of inputs, where numbers are not looked up by vectors."""

    name: ClassVar[str] = "input-runs"

    def serves(self, node: Node) -> bool:
        """Not asked about runs along the outputs."""
        return IsaRow.serves(self, node) and _encoding(node).along == "input"
