"""Pass ``prune-channels``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dlcc.ir import Graph, Value
from dlcc.ir.encodings import Array
from passes.base import Pass, PassContext, PassResult, Stage, option, part
from passes.compression import channel_choice as choice
from passes.compression import saliency
from passes.compression.channel_branches import (
    Branches,
    branch_errors,
    silence,
    without_branches,
)
from passes.compression.channel_choice import Bundle, Work
from passes.compression.channel_constants import (
    constant_channels,
    dead_groups,
    stop_reading,
    with_means,
)
from passes.compression.channel_removal import shrink, shrink_moments
from passes.compression.channel_rules import analyse
from passes.compression.channel_times import LayerTimes
from passes.compression.channels import Channels, LayerSides
from passes.compression.layers import WeightLayer, check_names
from passes.compression.reconstruct import reconstruct
from passes.quantization.samples import Samples, read
from passes.quantization.structure import LAYERS, key

_LIKE_LANES = 16
"""Channels that kernels take at a time where no target is known."""

_BRANCH_SAMPLES = 64
"""On how many samples the network is run without each residual branch."""


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove whole channels and neurons: weights, activations and the work on them shrink.

    Channels that depend on each other (both terms of a residual sum, input and output of a
    depthwise convolution) are removed together or not at all. How many: ``macs`` is the share of
    the network's multiply-accumulates to save, where the least salient channels go first for the
    work they save; ``ratio`` the share of each layer's channels; ``threshold`` drops small filters.
    Channels that nobody reads, or that never change, go in any case; biases take over what they
    contributed; with calibration data they take the mean of any other removed channel.

    ::

        %a = conv2d(%x, @w1, @b1)    // @w1: f32[64,16,3,3]
        %y = conv2d(%a, @w2, @b2)    // @w2: f32[10,64,1,1]
        ->
        %a = conv2d(%x, @w1, @b1)    // @w1: f32[48,16,3,3]
        %y = conv2d(%a, @w2, @b2)    // @w2: f32[10,48,1,1]
    """

    name: ClassVar[str] = "prune-channels"
    lossy: ClassVar[bool] = True
    stage: ClassVar[Stage] = Stage.CHANNELS

    macs: float | None = option(
        None,
        "share of the network's multiply-accumulates to save",
        unit="below 1",
        minimum=0.0,
        maximum=1.0,
    )
    ratio: float | None = option(
        None, "share of each layer's channels to remove", unit="below 1", minimum=0.0, maximum=1.0
    )
    threshold: float | None = option(
        None, "smallest root mean square of a channel's filters to keep", minimum=0.0
    )
    saliency: Literal["magnitude", "obd", "first-order"] = option(
        "magnitude",
        "what tells how much a channel matters: the magnitude of its filters; obd: what the layers "
        "that read it lose of their results on calibration data (optimal brain damage); "
        "first-order: what the network's outputs lose, to first order",
    )
    reconstruct: bool = option(
        False, "fit the remaining weights and the biases to the dense network's calibration results"
    )
    multiple: int | None = option(
        None,
        "the number of channels left is a multiple of it; by default what suits the target",
        unit="channels",
        minimum=1,
    )
    minimum: int = option(
        1,
        "fewest channels to leave of a layer; 0: residual branches may go as a whole",
        unit="channels",
        minimum=0,
    )
    samples: int = option(256, "most calibration samples to use", unit="samples", minimum=1)
    only: tuple[str, ...] = option(
        (), "layers that may lose channels, by name; * and ? match; none for all"
    )
    exclude: tuple[str, ...] = option((), "layers that may not, by name; * and ? match")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [n for n in ("macs", "ratio", "threshold") if getattr(self, n) is not None]
        if len(given) > 1:
            raise self.usage(
                f"{' and '.join(given)} do not go together",
                "each of them says how many channels are removed",
                "give one of them",
            )
        if 1.0 in (self.macs, self.ratio):
            raise self.usage(
                f"option {given[0]}=1 is not valid", "nothing would be left", "choose less than 1"
            )
        if self.threshold is not None and self.saliency != "magnitude":
            raise self.usage(
                f"saliency={self.saliency} does not go with threshold",
                "thresholds are magnitudes of weights",
                "leave saliency out, or give macs or ratio",
            )

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Remove channels in place.

        Raises:
            DlccError: a name pattern matches no layer, the work wanted cannot be saved, or the
                calibration data is missing or does not fit the network.
        """
        result = PassResult()
        check_names([n for n in graph.nodes if n.op in LAYERS], self.only)
        channels = analyse(graph, self.only, self.exclude)
        samples = self._samples(graph, context, result)
        constants = constant_channels(graph, channels)
        work = Work(graph, channels)
        kept = self._choose(channels, work, constants, samples, context)
        if samples is not None:
            constants = with_means(channels, constants, samples)
        sizes = [_stored_bytes(side) for side in work.layers]
        result.modified = not kept.all()
        if result.modified:
            stop_reading(graph, channels, constants, kept)
            if self.reconstruct and samples is not None:
                self._reconstruct(graph, samples, channels, kept, context, result)
            channels, kept, gone = without_branches(graph, channels, kept)
            for node in gone:
                context.channel_moments.pop(node.loc, None)
            shrink_moments(channels, kept, context.channel_moments)
            shrink(graph, channels, kept)
        self._account(graph, work, kept, sizes, channels, result)
        return result

    def _samples(self, graph: Graph, context: PassContext, result: PassResult) -> Samples | None:
        if self.saliency == "magnitude" and not self.reconstruct:
            return None
        samples = read(graph, context.batches(self), self.samples)
        result.statistics["samples"] = samples.count
        return samples

    # -- which ---------------------------------------------------------------------------------

    def _choose(
        self,
        channels: Channels,
        work: Work,
        constants: dict[Value, Array],
        samples: Samples | None,
        context: PassContext,
    ) -> Array:
        """Which groups are kept, bool [groups]."""
        scores = self._scores(channels, samples, context)
        multiple = self.multiple or int(context.target.get("channel_multiple", _LIKE_LANES))
        left = np.zeros(channels.count, np.bool_)
        while True:
            dead = dead_groups(channels, constants, left)
            order = np.where(dead, -np.finfo(np.float64).tiny, scores)  # they go first
            found = choice.bundles(channels, work, order, multiple, self.minimum)
            free = [int(np.count_nonzero(dead[b.groups])) for b in found]
            kept = choice.by_count(found, free, np.ones(channels.count, np.bool_))
            if not (dead & kept).any():
                break
            left |= dead & kept  # for the multiple or the minimum
        scores = order
        if self.macs is not None:
            wanted = self.macs * work.total
            times = None if context.cost is None else LayerTimes(work.layers, context.cost)
            gain = choice.gain_of(work, times)
            if self.saliency == "first-order" and samples is not None:
                scores = self._measured(channels, found, scores, samples, context)
            after = choice.by_work(found, work, scores, wanted, kept, gain)
            self._check_reached(work, after, multiple)
            return after
        return choice.by_count(found, self._counts(channels, found), kept)

    def _scores(self, channels: Channels, samples: Samples | None, context: PassContext) -> Array:
        if self.saliency == "magnitude" or samples is None:
            return choice.magnitudes(channels)
        sides = [s for s in channels.layers() if s.reads is not None]
        layers = [WeightLayer((s.node,), s.node.input(1).decoded()) for s in sides]
        advance = part(context, 0.0, 0.4, "measuring saliency")
        if self.saliency == "first-order":
            rng = context.rng("saliency")
            shares = saliency.output_changes(layers, samples, rng, advance)
        else:
            shares = saliency.output_errors(layers, samples, advance)
        return choice.by_readers(channels, sides, shares)

    def _measured(
        self,
        channels: Channels,
        found: Sequence[Bundle],
        scores: Array,
        samples: Samples,
        context: PassContext,
    ) -> Array:
        """Saliencies that add up to what the outputs lose without a residual branch.

        Single channels lose less to first order than all of a branch together do, and the further
        back the more: up to 35 times as much in ResNet-56. Other bundles get the median factor.
        """
        branches = Branches(channels)
        inner = [b.groups for b in found if branches.may_go(b.groups) and len(b.groups) == b.size]
        inner = [groups for groups in inner if scores[groups].sum() > 0]
        if not inner:
            return scores
        ends = [branches.readers(groups) for groups in inner]
        advance = part(context, 0.4, 0.5, "measuring branches")
        errors = branch_errors(samples.first(_BRANCH_SAMPLES), ends, advance)
        factors = [e / scores[groups].sum() for e, groups in zip(errors, inner, strict=True)]
        scaled = scores * float(np.median(factors))
        for groups, factor in zip(inner, factors, strict=True):
            scaled[groups] = scores[groups] * factor
        return np.asarray(scaled)

    def _counts(self, channels: Channels, found: Sequence[Bundle]) -> list[int]:
        """Groups to remove of each bundle, but for rounding."""
        if self.ratio is not None:
            return [math.floor(self.ratio * b.size + 1e-9) for b in found]
        if self.threshold is None:
            return [0 for _ in found]
        sizes = choice.root_mean_squares(channels)
        return [int(np.count_nonzero(sizes[b.groups] < self.threshold)) for b in found]

    def _check_reached(self, work: Work, kept: Array, multiple: int) -> None:
        assert self.macs is not None
        share = 1 - work.of(kept) / max(work.total, 1.0)
        if share < self.macs - 1e-9:
            raise self.usage(
                f"macs={self.macs:g} cannot be saved",
                f"at most {share:.1%} can: the other channels are needed as they are, or the "
                f"fewest of their layer with multiple={multiple} minimum={self.minimum}",
                "ask for less, or give a smaller multiple",
            )

    # -- what is left --------------------------------------------------------------------------

    def _reconstruct(
        self,
        graph: Graph,
        samples: Samples,
        channels: Channels,
        kept: Array,
        context: PassContext,
        result: PassResult,
    ) -> None:
        lost = {s.node for s in channels.layers() if not kept[channels.groups(s.results)].any()}
        names = {key(n): n.loc for n in graph.nodes if n.op in LAYERS and n not in lost}
        advance = part(context, 0.5, 1.0, "fitting what remains")
        done = reconstruct(
            graph,
            samples,
            dict.fromkeys(names),
            context.rng("reconstruct"),
            advance,
            [key(n) for n in silence(channels, kept)],
        )
        for name, after in done.after.items():
            message = f"fitted: error of its result {done.before[name]:.3g} -> {after:.3g}"
            result.remarks.append(self.remark("note", names[name], message))
        for name, why in done.skipped.items():
            result.remarks.append(self.remark("note", names[name], f"not fitted: {why}"))
        result.statistics["fitted_layers"] = len(done.after)

    def _account(
        self,
        graph: Graph,
        work: Work,
        kept: Array,
        sizes: Sequence[int],
        channels: Channels,
        result: PassResult,
    ) -> None:
        """Remarks for each layer, and the totals.

        Args:
            graph: the network as it is now.
            work: of the network as it was.
            kept: bool [groups].
            sizes: bytes of the layers' weights as they were.
            channels: the groups.
            result: where to tell.
        """
        for node, why in channels.untold.items():
            result.remarks.append(self.remark("refused", node.loc or key(node), why))
        alive = set(graph.nodes)
        after = [_stored_bytes(side) if side.node in alive else 0 for side in work.layers]
        for side, old, new in zip(work.layers, sizes, after, strict=True):
            loc = side.node.loc or key(side.node)
            groups = channels.groups(side.results)
            if old != new:
                what = _extents(side, channels, kept)
                text = f"{what if new else 'gone'}: {old} -> {new} bytes of weights"
                result.remarks.append(self.remark("applied", loc, text))
            frozen = [channels.frozen[g] for g in groups.tolist() if g in channels.frozen]
            if kept[groups].all() and (frozen or old == new) and side.node in alive:
                why = frozen[0] if frozen else "none was chosen"
                text = f"it keeps its channels: {why}"
                result.remarks.append(self.remark("refused", loc, text))
        result.statistics.update(
            {
                "groups": channels.count,
                "removed_groups": int(np.count_nonzero(~kept)),
                "macs_before": int(work.total),
                "macs_after": round(work.of(kept)),
                "saved_macs": round(1 - work.of(kept) / max(work.total, 1.0), 4),
                "bytes_before": sum(sizes),
                "bytes_after": sum(after),
            }
        )


def _stored_bytes(side: LayerSides) -> int:
    """Exact bytes of a layer's weight in the weights file."""
    weight = side.node.input(1)
    assert weight.constant is not None
    return weight.type.encoding.stored_bytes(weight.constant.parts)


def _extents(side: LayerSides, channels: Channels, kept: Array) -> str:
    """Channels before and after, in words."""
    parts = []
    words = (("reads", side.reads), ("makes", side.makes), ("reads and makes", side.tied))
    for word, cut in words:
        if cut is not None:
            places = kept[channels.groups(cut)]
            parts.append(f"{word} {np.count_nonzero(places)} of {len(places)} channels")
    return ", ".join(parts)
