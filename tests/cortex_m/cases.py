"""Kernel plans with data as one program for a board, run in one start of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dlcc import tir
from dlcc.artifact import write_artifact
from dlcc.lowering.kernel import KernelPlan
from dlcc.program import Arg, Program, Step, TensorInfo, WeightEntry
from targets.cortex_m import ALIGNMENT, CORES, SLACK
from tests.cortex_m.board import BOARDS, run


class _Blob:
    """Bytes at aligned offsets."""

    def __init__(self) -> None:
        self.content = bytearray()

    def add(self, array: np.ndarray) -> int:
        self.content += bytes(-len(self.content) % ALIGNMENT)
        offset = len(self.content)
        self.content += np.ascontiguousarray(array).tobytes() + b"\xa5" * SLACK
        return offset


def run_plans(
    plans: Sequence[tuple[KernelPlan, list[np.ndarray], np.ndarray]], core: str, work: Path
) -> list[np.ndarray]:
    """Runs every plan on its inputs; gives arrays like the outputs (third of the tuple)."""
    blob, steps, end = _Blob(), [], 0
    scratch = max(sum(-(-s // 8) * 8 for s in plan.scratch) for plan, _, _ in plans)
    places = []
    for index, (plan, inputs, output) in enumerate(plans):
        constants = {name: blob.add(array) for name, array in plan.constants.items()}
        given = [blob.add(array) for array in inputs]
        places.append(end)
        starts = np.cumsum([0, *(-(-s // 8) * 8 for s in plan.scratch)])
        for step in plan.steps:
            args = []
            for kind, which in step.args:
                if kind == "const":
                    args.append(Arg("weights", constants[str(which)]))
                elif kind == "in":
                    args.append(Arg("weights", given[int(which)]))
                elif kind == "scratch":
                    args.append(Arg("arena", int(starts[int(which)])))
                else:
                    args.append(Arg("output", end))
            steps.append(Step(f"case{index}", step.name_key, tuple(args), step.work_items))
        end += -(-output.nbytes // ALIGNMENT) * ALIGNMENT
    functions = {s.name_key: s.build for plan, _, _ in plans for s in plan.steps}
    made = CORES[core]
    code = tir.compile_object(
        {key: build() for key, build in functions.items()},
        tir.LLVMTarget(made.triple, made.isa.mcpu, made.isa.mattr),
    )
    # the tensors' places, which the program under test does not use
    places_at = -(-scratch // ALIGNMENT) * ALIGNMENT
    program = Program(
        "cases",
        (TensorInfo("none", "uint8", (8,)),),
        (TensorInfo("y", "float32", (end // 4,)),),
        tuple(steps),
        places_at + 8 + end,
        bytes(blob.content),
        (WeightEntry("all", "all", 0, len(blob.content), "dense<u8>"),),
        code,
        made.triple,
        (),
        alignment=ALIGNMENT,
        input_places=(places_at,),
        output_places=(places_at + 8,),
    )
    write_artifact(program, work / "cases", emit=("a",))
    samples = np.zeros((2, 8), np.uint8)
    made_bytes = run(BOARDS[core], work / "cases", "cases", samples, work).outputs
    return [
        made_bytes[0, at : at + out.nbytes].view(out.dtype).reshape(out.shape)
        for at, (_, _, out) in zip(places, plans, strict=True)
    ]
