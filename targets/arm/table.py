"""The kernel tables of AArch64 and of 32-bit ARM with NEON."""

from __future__ import annotations

from dlcc.ir import Affine, Node
from dlcc.lowering.target import KernelRow
from targets.isa import Isa
from targets.rows.codes import QuantizeRow
from targets.rows.default import DefaultRow
from targets.rows.dense import (
    ConvRow,
    ConvTransposeRow,
    DepthwiseRow,
    MatmulRow,
    WinogradRow,
)
from targets.rows.rounding import RoundPlanesRow


class FloatConvRow(ConvRow):
    """Convolution and linear layers in float32."""

    def refuses(self, node: Node) -> str:
        """Codes."""
        why = super().refuses(node)
        if not why and isinstance(node.input(0).type.encoding, Affine):
            why = "the activations are codes"
        return why


def rows_for(isa: Isa) -> tuple[KernelRow, ...]:
    """All rows that this feature level can run."""
    return (
        FloatConvRow(isa),
        DepthwiseRow(isa),
        WinogradRow(isa),
        ConvTransposeRow(isa),
        MatmulRow(isa),
        RoundPlanesRow(isa),
        QuantizeRow(isa),
        DefaultRow(isa),
    )
