"""What rows of a kernel table share."""

from __future__ import annotations

from dlcc.lowering.target import KernelRow
from targets.isa import Isa


class IsaRow(KernelRow):
    """A row made for one instruction set."""

    def __init__(self, isa: Isa) -> None:
        self.isa = isa
