"""Codes at a network's borders: which passes that takes, and whether it came to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dlcc.data import Batches
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, Graph, TensorType
from dlcc.ir.encodings import Array
from passes.base import Pass, Remark
from passes.integer_inputs import TO_NHWC, IntegerInputs
from passes.integer_outputs import IntegerOutputs


@dataclass(frozen=True)
class Borders:
    """What the caller of a network gives and gets.

    Attributes:
        inputs: codes where the network begins by quantising an input.
        outputs: codes where its results are codes.
        nhwc: such images have their channels last.
    """

    inputs: bool = False
    outputs: bool = False
    nhwc: bool = False

    def passes(self) -> list[Pass]:
        """What runs behind all other passes.

        Raises:
            DlccError: USAGE, only ``nhwc`` is wanted.
        """
        if self.nhwc and not (self.inputs or self.outputs):
            raise DlccError(
                ExitCode.USAGE,
                "nothing says what is to have its channels last",
                where="--nhwc",
                why="it is about images of codes",
                fix="give --integer-inputs or --integer-outputs too",
            )
        inputs = [IntegerInputs(nhwc=self.nhwc)] if self.inputs else []
        return [*inputs, *([IntegerOutputs(nhwc=self.nhwc)] if self.outputs else [])]

    def check(self, graph: Graph, remarks: Sequence[Remark]) -> None:
        """Whether there are codes where they were asked for.

        Args:
            graph: after the passes.
            remarks: theirs.

        Raises:
            DlccError: PASS, no input takes codes, or no output gives any.
        """
        for wanted, values, step, what, fix in (
            (self.inputs, graph.inputs, IntegerInputs, "input takes", "--bits 8"),
            (self.outputs, graph.outputs, IntegerOutputs, "output gives", OUTPUTS_FIX),
        ):
            if not wanted or any(isinstance(v.type.encoding, Affine) for v in values):
                continue
            reasons = [f"{r.loc}: {r.message}" for r in remarks if r.pass_name == step.name]
            raise DlccError(
                ExitCode.PASS,
                f"no {what} codes",
                where=f"--{step.name}",
                why="; ".join(reasons) or "there is none",
                fix=f"quantise the network with {fix}, or leave the option out",
            )


def as_given(
    batches: Batches, steps: Sequence[Pass], before: Mapping[str, TensorType], graph: Graph
) -> Batches:
    """Calibration data in the order in which the caller now gives images.

    Args:
        batches: as the network took it before the passes.
        steps: the passes that ran.
        before: types of the inputs before them.
        graph: the network after them.
    """
    moves = any(isinstance(step, IntegerInputs) and step.nhwc for step in steps)
    moved = {
        v.name
        for v in graph.inputs
        if moves and v.type.rank == 4 and v.type.encoding != before[v.name].encoding
    }
    if not moved:
        return batches

    def given() -> Iterator[dict[str, Array]]:
        for feed in batches():
            yield {k: np.transpose(a, TO_NHWC) if k in moved else a for k, a in feed.items()}

    return given


OUTPUTS_FIX = "--bits 8, or with quantize{outputs=true} among --passes"
