"""Pass ``search-bitwidths``."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph
from passes.base import PassContext, PassResult, option, part
from passes.compression.sensitivity import affordable
from passes.pipeline import print_pass
from passes.quantization import knobs as turning
from passes.quantization import walk
from passes.quantization.judge import WORDS, Judge
from passes.quantization.knobs import Part
from passes.quantization.samples import read
from passes.quantization.structure import analyse
from passes.quantization.walk import Choice, Knob
from passes.quantization.widths import described
from passes.quantize import Quantize

_MICRO = 1e-6
_SHOWN = 10
"""Points of a curve that a remark tells."""


@dataclass(frozen=True)
class SearchBitwidths(Quantize):
    """Quantise to the fewest bits that keep a loss, a size or a predicted time within a budget.

    With ``loss`` the widths of weights (or of what layers read) are lowered layer by layer as long
    as the network's loss on the calibration data stays within it, and the least uniform width is
    told beside (Judd et al. 2015, "Reduced-precision strategies for bounded memory in deep neural
    nets"). With ``size`` or ``latency`` the widths with the least loss within that budget are
    sought.

    First each layer alone is rounded to each width, which tells by how much the outputs move. A
    greedy walk lowers that width next which adds the least error for the cost it saves; networks on
    its way are quantised in full and measured, and the last one that meets the budget is improved
    width by width. ``bits`` is the widest width; ``weights`` and ``inputs`` give widths that stay.

    ::

        %y = conv2d(%x, @w, @b)
        ->
        %y = conv2d(%x.codes, @w, @b)      // u8, s5 and s32 codes
    """

    name: ClassVar[str] = "search-bitwidths"

    loss: float | None = option(None, "largest loss, as measure tells it", minimum=0.0, maximum=1.0)
    size: int | None = option(
        None, "most bytes for the codes of the weights", unit="bytes", minimum=1
    )
    latency: float | None = option(
        None, "largest predicted time of the layers on one thread", unit="microseconds", minimum=0.0
    )
    measure: Literal["auto", "accuracy", "agreement", "error"] = option(
        "auto",
        "what a loss is; accuracy: of the labels in the calibration data; agreement: share of "
        "samples that get another class than from the float network; error: relative error of the "
        "outputs; auto: the first of them that there is data for",
    )
    what: Literal["weights", "inputs", "both"] = option(
        "weights", "whose widths are searched for: of weights, of what layers read, or of both"
    )
    least: int = option(2, "narrowest width", unit="bits", minimum=2, maximum=8)
    tries: int = option(32, "most networks to quantise and measure", minimum=8)
    samples: int = option(64, "most calibration samples to quantise with", minimum=1)
    judged: int = option(512, "most calibration samples to measure on", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [n for n in ("loss", "size", "latency") if getattr(self, n) is not None]
        if len(given) != 1:
            raise self.usage(
                "one of loss, size and latency must be given",
                f"given are {' and '.join(given)}" if given else "none of them is",
                "write search-bitwidths{loss=0.01}, for example",
            )
        if self.loss is None and self.what != "weights":
            raise self.usage(
                f"{given[0]} goes with what=weights",
                "activations are stored and multiplied as bytes at any width",
                "leave what out, or give a loss",
            )
        if self.least > self.bits:
            raise self.usage(
                f"least={self.least} is above bits={self.bits}", "", "give least at most bits"
            )

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Search, then quantise in place.

        Raises:
            DlccError: there is no calibration data, it does not fit, or no widths meet the budget.
        """
        samples = read(graph, context.batches(self), self.judged)
        plan = analyse(graph, self.exclude, self.bits, self.bits)
        kinds = ("weights", "inputs") if self.what == "both" else (self.what,)
        fixed = {k: [rule.rpartition(":")[0] for rule in getattr(self, k)] for k in kinds}
        found = turning.parts(graph, plan, kinds, fixed)
        if not found:
            result = super().run(graph, context)
            message = "there is no layer whose width could be chosen"
            result.remarks.append(self.remark("note", "", message))
            return result
        widths = tuple(range(self.bits, self.least - 1, -1))
        few = affordable(samples, len(found), len(widths))
        seconds = context.seconds if self.latency is not None else None
        advance = part(context, 0.0, 0.3, "measuring sensitivity")
        knobs = turning.knobs(found, widths, few, seconds, advance)
        labels = None
        if context.labels is not None and self.measure in ("auto", "accuracy"):
            labels = context.labels()
        trials = _Trials(self, graph, context, Judge(graph, samples, labels, self.measure), found)
        uniform = {bits: (bits,) * len(found) for bits in widths}
        choice = _Search(self, knobs, trials, uniform).run()
        result = Quantize.run(self.chosen(found, choice), graph, context)
        self._tell(result, found, knobs, trials, uniform, choice)
        return result

    def chosen(self, found: Sequence[Part], choice: Choice) -> SearchBitwidths:
        """The same pass with all widths given."""
        rules: dict[str, dict[str, int]] = {"weights": {}, "inputs": {}}
        for item, bits in zip(found, choice, strict=True):
            if bits != self.bits:
                rules[item.kind].update({glob.escape(loc): bits for loc in item.locs})
        return replace(
            self,
            weights=(*self.weights, *described(rules["weights"])),
            inputs=(*self.inputs, *described(rules["inputs"])),
        )

    # -- what is told --------------------------------------------------------------------------

    def _tell(
        self,
        result: PassResult,
        found: Sequence[Part],
        knobs: Sequence[Knob],
        trials: _Trials,
        uniform: dict[int, Choice],
        choice: Choice,
    ) -> None:
        def note(message: str, loc: str = "") -> None:
            result.remarks.append(self.remark("note", loc, message))

        for item, knob, bits in zip(found, knobs, choice, strict=True):
            moved = ", ".join(f"{w}: {e**0.5:.2g}" for w, e in knob.error.items())
            what = f"{bits} bits of {item.kind}"
            note(f"{what}; the outputs' error with this alone at width {moved}", knob.name)
        words, measured = WORDS[trials.judge.measure], trials.measured
        losses = {b: measured[c] for b, c in uniform.items() if c in measured}
        told = ", ".join(f"{b}: {loss:.4g}" for b, loss in losses.items())
        note(f"loss ({words}) at uniform widths {told}")
        curve = sorted((walk.total(knobs, c), loss) for c, loss in measured.items())
        step = max(1, len(curve) // _SHOWN)
        points = ", ".join(f"{self._cost_text(c)}: {loss:.4g}" for c, loss in curve[::step])
        note(f"loss of measured networks {points}")
        chosen = self.chosen(found, choice)
        own = {f.name: getattr(chosen, f.name) for f in fields(Quantize)}
        note(f"the same as {print_pass(Quantize(**own))}")
        cost = walk.total(knobs, choice)
        result.statistics.update(
            loss=round(measured[choice], 6),
            measure=trials.judge.measure,
            networks_measured=len(measured),
            mean_bits=round(_mean_bits(found, choice), 3),
        )
        if self.latency is None:
            result.statistics["searched_bytes"] = int(cost)
        else:
            result.statistics["predicted_us"] = round(cost / _MICRO, 3)
        least = [b for b, c in losses.items() if self.loss is not None and c <= self.loss]
        if least:
            result.statistics["uniform_bits"] = min(least)

    def _cost_text(self, cost: float) -> str:
        return f"{cost:.0f} bytes" if self.latency is None else f"{cost / _MICRO:.1f} us"


def _mean_bits(found: Sequence[Part], choice: Choice) -> float:
    sizes = [
        sum(n.input(1 if item.kind == "weights" else 0).type.elements for n in item.nodes)
        for item in found
    ]
    return sum(s * b for s, b in zip(sizes, choice, strict=True)) / max(1, sum(sizes))


class _Trials:
    """Quantises networks in full and measures them, each once.

    Attributes:
        measured: loss by choice.
    """

    def __init__(
        self,
        step: SearchBitwidths,
        graph: Graph,
        context: PassContext,
        judge: Judge,
        found: Sequence[Part],
    ) -> None:
        self.step, self.graph, self.context = step, graph, context
        self.judge, self.found = judge, found
        self.measured: dict[Choice, float] = {}

    @property
    def left(self) -> int:
        """Networks that may still be measured."""
        return self.step.tries - len(self.measured)

    def loss(self, choice: Choice) -> float:
        """Loss with these widths."""
        if choice not in self.measured:
            share = min(1.0, len(self.measured) / self.step.tries)
            self.context.advance(0.3 + 0.6 * share, "measuring networks")
            copy = self.graph.copy()
            quiet = replace(
                self.context,
                progress=None,
                remarks=[],
                assigned={},
                channel_moments=dict(self.context.channel_moments),
            )
            Quantize.run(self.step.chosen(self.found, choice), copy, quiet)
            self.measured[choice] = self.judge.loss(copy)
        return self.measured[choice]


class _Search:
    """Finds a choice within the budget."""

    def __init__(
        self,
        step: SearchBitwidths,
        knobs: Sequence[Knob],
        trials: _Trials,
        uniform: dict[int, Choice],
    ) -> None:
        self.step, self.knobs, self.trials, self.uniform = step, knobs, trials, uniform

    def run(self) -> Choice:
        """The choice.

        Raises:
            DlccError: PASS, if no widths meet the budget.
        """
        if self.step.loss is not None:
            return self._least_cost(self.step.loss)
        budget = float(self.step.size or 0)
        if self.step.latency is not None:
            budget = self.step.latency * _MICRO
        return self._least_loss(budget)

    def _cost(self, choice: Choice) -> float:
        return walk.total(self.knobs, choice)

    def _least_cost(self, budget: float) -> Choice:
        def meets(choice: Choice) -> bool:
            return self.trials.loss(choice) <= budget

        starts = [c for c in self.uniform.values() if meets(c)]
        way = walk.path(self.knobs)
        if meets(way[0]):
            starts.append(way[walk.deepest(way, meets)])
        if not starts:
            lowest = min(self.trials.measured.values())
            raise self._hopeless(f"the least loss of uniform widths is {lowest:.4g}", "loss")
        best = min(starts, key=self._cost)
        return walk.descend(self.knobs, best, meets, self.trials.left)

    def _least_loss(self, budget: float) -> Choice:
        way = walk.path(self.knobs)
        fitting = [c for c in (*way, *self.uniform.values()) if self._cost(c) <= budget]
        if not fitting:
            least = min(self._cost(c) for c in way)
            why = f"the narrowest widths take {self.step._cost_text(least)}"
            raise self._hopeless(why, "latency" if self.step.size is None else "size")
        on_way = next((c for c in way if c in fitting), None)
        found = [] if on_way is None else [on_way, walk.fill(self.knobs, on_way, budget)]
        found += [c for c in self.uniform.values() if c in fitting][:1]
        for bits in self.uniform:  # for the curve
            if self.trials.left > len(found):
                self.trials.loss(self.uniform[bits])
        return min(dict.fromkeys(found), key=lambda c: (self.trials.loss(c), self._cost(c)))

    def _hopeless(self, why: str, name: str) -> DlccError:
        return DlccError(
            ExitCode.PASS,
            f"no widths from {self.step.least} to {self.step.bits} bits meet {name}="
            f"{getattr(self.step, name)}",
            where=f"pass {self.step.name!r}",
            why=why,
            fix=f"allow more {name}, or leave sensitive layers in float with exclude",
        )
