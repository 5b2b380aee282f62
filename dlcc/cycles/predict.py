"""Cycles of each layer of an artifact: its executed blocks, priced by a scheduling model."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlcc.artifact import Artifact
from dlcc.artifact.toolchain import is_bare
from dlcc.cycles.code import basic_blocks, disassemble
from dlcc.cycles.emulator import executed
from dlcc.cycles.mca import Machine, find_tools
from dlcc.cycles.paths import paths
from dlcc.inspection import Layer, inspect_artifact
from dlcc.lowering.target import Core

NOTE = (
    "a prediction, not a measurement: instructions are counted in an emulator; cycles are those of "
    "LLVM's scheduling model, with data in the first-level cache (memory and flash without wait "
    "states where there is none) and branches foreseen"
)


@dataclass(frozen=True)
class LayerCycles:
    """What one layer costs, for one inference on one thread.

    Attributes:
        layer: name of the original node.
        op: op of the IR.
        kernel: name of the kernel.
        macs: multiply-accumulates by the layer's definition.
        instructions: executed ones.
        cycles: predicted, by the code alone.
        weight_bytes: of its constants.
        activation_bytes: of its inputs and outputs.
        memory_cycles: what reading those bytes takes at least; None where the core's rates are not
            known.
    """

    layer: str
    op: str
    kernel: str
    macs: int
    instructions: float
    cycles: float
    weight_bytes: int
    activation_bytes: int
    memory_cycles: float | None

    @property
    def bound_cycles(self) -> float:
        """The larger of what code and memory need."""
        return max(self.cycles, self.memory_cycles or 0.0)


@dataclass(frozen=True)
class Prediction:
    """Predicted cycles of an artifact.

    Attributes:
        name: of the network.
        core: LLVM's name of the core.
        model: what the names of the model's units begin with: cores that share a model share this.
        clock: cycles per second; 0: not known.
        llvm: version of LLVM.
        emulator: name and version.
        layers: in execution order.
        outside_instructions: executed outside of the kernels, by runtime and C library.
        outside_cycles: predicted cycles of those.
        unknown: instructions that the model has nothing on, counted as ones that do nothing.
    """

    name: str
    core: str
    model: str
    clock: float
    llvm: str
    emulator: str
    layers: tuple[LayerCycles, ...]
    outside_instructions: float
    outside_cycles: float
    unknown: tuple[str, ...]

    @property
    def instructions(self) -> float:
        """All instructions of one inference."""
        return sum(layer.instructions for layer in self.layers) + self.outside_instructions

    @property
    def cycles(self) -> float:
        """All predicted cycles: for each layer, the larger of code and memory."""
        return sum(layer.bound_cycles for layer in self.layers) + self.outside_cycles

    @property
    def seconds(self) -> float | None:
        """The predicted time of one inference, where the clock is known."""
        return self.cycles / self.clock if self.clock else None

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        totals = {
            "instructions": self.instructions,
            "cycles": self.cycles,
            "seconds": self.seconds,
            "note": NOTE,
        }
        return {**asdict(self), **totals}


def predict(
    folder: str | Path, core: Core, mattr: Sequence[str] = (), variant: str | None = None
) -> Prediction:
    """Predicts the cycles of an artifact on a core.

    Args:
        folder: the artifact, with a static library.
        core: what to predict for.
        mattr: LLVM's features that the code uses beyond those of the core.
        variant: the variant of the kernels that the core runs; None: the best.

    Raises:
        DlccError: USAGE if there is no static library; TARGET if the emulator or LLVM's tools are
            not installed, or do not know the code or the core; ARTIFACT for a faulty artifact.
    """
    tools, artifact = find_tools(), Artifact.open(folder)
    triple, symbol = str(artifact.manifest["triple"]), str(artifact.manifest["symbol"])
    machine = Machine(tools, triple, core.name, mattr)
    told = artifact.variant(variant or list(artifact.variants)[-1])
    report = inspect_artifact(folder, variant=told["variant"])
    with tempfile.TemporaryDirectory(prefix="dlcc-cycles-") as work:
        run = executed(artifact, Path(work), told["variant"])
        options = ["--mattr=+all"] if triple.startswith("aarch64") else []
        if is_bare(triple):
            options = [f"--mcpu={core.name}"]
        functions = disassemble(tools.objdump, run.program, options)
    ways = list(paths(list(basic_blocks(functions, run.runs))))
    costs = machine.costs([way.instructions for way in ways])
    instructions: Counter[str] = Counter()
    cycles: dict[str, float] = {}
    for way, cost in zip(ways, costs.cycles, strict=True):
        instructions[way.function] += way.executed
        cost *= way.executed / len(way.instructions)
        cycles[way.function] = cycles.get(way.function, 0.0) + cost
    kernels = {f: symbol_of(symbol, f) for layer in report.layers for f in layer.functions}
    shares = _shares(report.layers, told["steps"])
    weights = int(artifact.manifest["weights"]["content_bytes"])
    layers = tuple(
        LayerCycles(
            layer.layer,
            layer.op,
            layer.kernel,
            layer.macs,
            sum(shares[i][f] * instructions[kernels[f]] for f in shares[i]),
            sum(shares[i][f] * cycles.get(kernels[f], 0.0) for f in shares[i]),
            layer.weight_bytes,
            layer.activation_bytes,
            memory_cycles(core, layer.weight_bytes, layer.activation_bytes, weights),
        )
        for i, layer in enumerate(report.layers)
    )
    within = set(kernels.values())
    return Prediction(
        report.name,
        core.name,
        costs.model,
        core.clock,
        tools.version,
        run.emulator,
        layers,
        sum(n for name, n in instructions.items() if name not in within),
        sum(n for name, n in cycles.items() if name not in within),
        costs.unknown,
    )


def symbol_of(network: str, function: str) -> str:
    """The symbol of a kernel in the library of ``network``."""
    return f"{network}_kernel_" + "".join(
        c if c.isascii() and c.isalnum() else "_" for c in function
    )


def _shares(layers: Sequence[Layer], steps: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """For each layer, its part of each of its functions: layers of equal shapes share one.

    The parts are those of the work items, which are equal work; fused steps count as one item.
    """
    items: Counter[tuple[str, str]] = Counter()
    for step in steps:
        items[step["layer"], step["function"]] += int(step["work_items"])
    repeated = Counter((layer.layer, f) for layer in layers for f in set(layer.functions))
    wanted: list[dict[str, float]] = [
        {
            f: max(1, items[layer.layer, f]) / repeated[layer.layer, f]
            for f in dict.fromkeys(layer.functions)
        }
        for layer in layers
    ]
    totals: Counter[str] = Counter()
    for row in wanted:
        for function, count in row.items():
            totals[function] += count  # type: ignore[assignment]
    return [{f: count / totals[f] for f, count in row.items()} for row in wanted]


def memory_cycles(core: Core, weights: int, activations: int, all_weights: int) -> float | None:
    """Cycles that reading a layer's bytes takes at least.

    Weights come from where the whole network's weights fit, since all of them pass between two
    uses; activations from where the layer's own fit, as they were written just before. What is in
    the first-level cache costs nothing here: the scheduling model has it.
    """
    if not (core.l2_read and core.memory and core.clock):
        return None
    memory = core.memory / core.clock

    def rate(footprint: int) -> float:
        return core.l2_read if footprint <= core.l2_bytes else memory

    moved = 0.0 if all_weights <= core.l1_bytes else weights / rate(all_weights)
    if activations > core.l1_bytes:
        moved += activations / rate(activations)
    return moved
