"""From a graph to a :class:`~dlcc.program.Program`: layouts, kernel choice, memory plan, code."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dlcc.analysis.verify import verify
from dlcc.ir import Affine, Graph, Node, Value
from dlcc.ir.text import encoding_text
from dlcc.lowering.attention import fuse_attention
from dlcc.lowering.choice import Choice, Chooser, choose
from dlcc.lowering.fusion import Fusion, Group, choose_groups
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.layout import assign_layouts
from dlcc.lowering.loops import (
    Trips,
    check_loops,
    expand_loops,
    hold_over,
    mark_of,
    pin_loops,
    trips_of,
)
from dlcc.lowering.memory import Sharing, Span, place
from dlcc.lowering.order import dependencies, levels, starts, times
from dlcc.lowering.pending import (
    Pending,
    Scratch,
    final_arg,
    final_place,
    fused_step,
    last_users,
    work_items,
    work_of,
    written_place,
)
from dlcc.lowering.report import layer_report, report_threads
from dlcc.lowering.rounding import check_short_floats, round_moved
from dlcc.lowering.stores import Functions, Weights
from dlcc.lowering.target import Target
from dlcc.lowering.threads import worthwhile_threads
from dlcc.lowering.unsigned import make_activations_unsigned
from dlcc.lowering.variants import Variant, select
from dlcc.lowering.views import Buffer, assign_buffers, computes, pin_outputs
from dlcc.lowering.wide import split_wide_concats
from dlcc.ops.base import op_of
from dlcc.program import (
    Arg,
    FusedStep,
    Jump,
    KernelSource,
    Program,
    Step,
    TensorInfo,
)

Progress = Callable[[str, float], None]
"""Called with a phase's name and the fraction of it that is done."""

Builder = Callable[[dict[str, Any], Target], bytes]
"""Compiles named TIR functions to a relocatable object."""

Printer = Callable[[dict[str, Any], Mapping[str, int], Target], Mapping[str, KernelSource]]
"""Prints named TIR functions, for the work items of their steps, as C."""


def prepare(
    graph: Graph, targets: Sequence[Target] = (), fused: Collection[str] | None = None
) -> Graph:
    """A copy of ``graph`` as the kernels want it; same reference results, bit for bit.

    ``targets``: what it is lowered for. Attention of 16-bit floats that has a kernel there becomes
    one op, whose reference rounds less than those of its parts. ``fused``: which of it
    (:func:`~dlcc.lowering.attention.fuse_attention`).
    """
    out = graph.copy()
    expand_loops(out)
    make_activations_unsigned(out)
    fuse_attention(out, targets, fused)
    split_wide_concats(out)
    assign_layouts(out)
    round_moved(out)
    pin_loops(out)
    pin_outputs(out)
    verify(out)
    return out


class _Assembler:
    """Turns chosen kernels into steps, spans and weights."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        threads: int,
        weights: Weights,
        functions: Functions,
    ) -> None:
        self.graph = graph
        self.target = target
        self.threads = threads
        self.buffers = assign_buffers(graph)
        self.weights = weights
        self.functions = functions
        self.pending: list[Pending] = []
        self.shared: list[Sharing] = []

    def add_layer(self, choice: Choice) -> list[str]:
        """Append the layer's steps; returns the names of their functions."""
        plan, node = choice.plan, choice.node
        shared = [Scratch(Span(size), 0) for size in plan.scratch]
        private = [
            Scratch(Span(self._aligned(size) * self.threads), self._aligned(size))
            for size in plan.thread_scratch
        ]
        constants = {
            name: self.weights.add(array, node.loc, name, self._encoding_of(node, name))
            for name, array in plan.constants.items()
        }
        made = {constants[name]: filters for name, filters in plan.transforms.items()}
        self.weights.transforms |= made
        activations = [v for v in node.inputs if v is not None and not v.is_constant]
        names = []
        for step in plan.steps:
            args: list[Arg | Buffer | Scratch] = []
            for kind, which in step.args:
                if kind == "const":
                    args.append(Arg("weights", constants[str(which)]))
                elif kind == "scratch":
                    args.append(shared[int(which)])
                elif kind == "thread_scratch":
                    args.append(private[int(which)])
                elif kind == "in":
                    args.append(self.buffers[activations[int(which)]])
                else:
                    args.append(self.buffers[node.outputs[int(which)]])
            names.append(self.functions.add(step))
            used = {str(which) for kind, which in step.args if kind == "const"}
            weights = sum(int(plan.constants[name].nbytes) for name in used)
            seconds = step.seconds or choice.seconds
            mark = mark_of(node)
            self.pending.append(Pending(node.loc, names[-1], step, args, seconds, weights, mark))
        if self.threads == 1 and len(plan.steps) == 1 and len(node.outputs) == 1:
            self._share(plan, node, activations)
        return names

    def _share(self, plan: KernelPlan, node: Node, activations: list[Value]) -> None:
        """Notes over which of its inputs the layer's output may be made."""
        written = self.buffers[node.outputs[0]]
        for index in plan.overlaps:
            read = self.buffers[activations[index]]
            same = [i for i, v in enumerate(activations) if self.buffers[v] is read]
            if read is not written and all(i in plan.overlaps for i in same):
                overlaps = tuple(plan.overlaps[i] for i in same)
                self.shared.append(Sharing(written.span, read.span, overlaps))

    def _encoding_of(self, node: Node, name: str) -> str:
        for index, operand in enumerate(op_of(node).operands):
            value = node.optional_input(index)
            if operand.rstrip("?*") == name and value is not None and value.is_constant:
                return encoding_text(value.type.encoding)
        return ""

    def _aligned(self, size: int) -> int:
        return -(-size // self.target.alignment) * self.target.alignment

    def _window_bytes(self, size: int) -> int:
        """Bytes of one thread's window; what may be read past its end is no other thread's."""
        return self._aligned(size + self.target.slack)

    def finish(self, cache: int) -> tuple[tuple[Step | FusedStep, ...], int, dict[str, object]]:
        """Fuse steps and place everything: the final steps, the arena's bytes, what was fused.

        Args:
            cache: bytes of the second-level cache that steps are fused for; 0: none are.
        """
        fusion = self._fusion(cache)
        groups = fusion.groups
        when = self._by_level() if self.target.device else times(len(self.pending), groups)
        windows = {
            key: Scratch(
                Span(self._window_bytes(w.size) * self.threads), self._window_bytes(w.size)
            )
            for group in groups
            for key, w in group.plan.windows.items()
        }
        inside = ("input", "output", "arena") if self.target.tensors_in_arena else ("arena",)
        places: dict[int, Span] = {}
        for buffer in self.buffers.values():
            if buffer.kind != "arena" and buffer.kind in inside:
                buffer.span.cover(0 if buffer.kind == "input" else len(self.pending) - 1)
                places[id(buffer.span)] = buffer.span
        for index, pending in enumerate(self.pending):
            for arg in pending.args:
                if isinstance(arg, Scratch) or (isinstance(arg, Buffer) and arg.kind in inside):
                    span = windows[id(arg)].span if id(arg) in windows else arg.span
                    span.cover(when[index])
                    places[id(span)] = span
        trips = [(when[t.first], when[t.last]) for t in self.trips()]
        hold_over(trips, places.values())
        target = self.target
        size = place(list(places.values()), target.slack, target.alignment, self.shared)
        return tuple(self._final_steps(groups, windows)), size, self._fusion_report(fusion)

    def _by_level(self) -> list[int]:
        """Orders the steps of a GPU by how many have to come before each; when each one runs.

        Steps of one level do not depend on one another. They count as running at one time, and
        share no memory, so that nothing but the data orders them.
        """
        touched = (p.touches(lambda arg: (id(arg), 0, 1)) for p in self.pending)
        level = levels(dependencies(touched))
        order = sorted(range(len(level)), key=level.__getitem__)
        self.pending = [self.pending[index] for index in order]
        when = [level[index] for index in order]
        uses = last_users(self.pending, when)
        self.shared = [s for s in self.shared if uses[id(s.read)] == 1]
        return when

    def tensor_places(self, kind: str) -> tuple[int, ...]:
        """Offsets of the inputs' or outputs' places in the arena, if there are any."""
        if not self.target.tensors_in_arena:
            return ()
        found = {b.index: b.span.offset for b in self.buffers.values() if b.kind == kind}
        return tuple(found[index] for index in sorted(found))

    def _fusion(self, cache: int) -> Fusion:
        sizes = {
            id(arg): arg.size if isinstance(arg, Buffer) else arg.span.size
            for pending in self.pending
            for arg in pending.args
            if (isinstance(arg, Buffer) and arg.kind == "arena")
            or (isinstance(arg, Scratch) and not arg.per_thread)
        }
        candidates = [pending.candidate() for pending in self.pending]
        edges = [i for i, pending in enumerate(self.pending) if pending.mark is not None]
        borders = {*edges, *(i + 1 for i in edges)}
        return choose_groups(candidates, sizes, cache=cache, threads=self.threads, borders=borders)

    def trips(self) -> list[Trips]:
        """The loops of the run time, by the steps that their trips are made of."""
        return trips_of([pending.mark for pending in self.pending])

    def _fusion_report(self, fusion: Fusion) -> dict[str, object]:
        layers = [pending.layer for pending in self.pending]
        groups = [
            {
                "layers": list(dict.fromkeys(layers[group.first : group.last + 1])),
                "bands": group.bands,
                "window_bytes": sum(w.size for w in group.plan.windows.values()),
                "predicted_gain_seconds": group.gain,
            }
            for group in fusion.groups
        ]
        apart = [
            {"layers": list(dict.fromkeys(layers[index : index + 2])), "why": why}
            for index, why in fusion.apart.items()
        ]
        return {"groups": groups, "apart": apart}

    def _final_steps(
        self, groups: Sequence[Group], windows: Mapping[int, Scratch]
    ) -> Iterator[Step | FusedStep]:
        ends = {group.first: group.last + 1 for group in groups}
        plans = {group.first: group.plan for group in groups}
        firsts = list(starts(len(self.pending), groups))
        runs = [self.pending[first : ends.get(first, first + 1)] for first in firsts]
        threads = worthwhile_threads([work_of(run) for run in runs], self.threads)
        placed = (p.touches(final_place) for p in self.pending) if self.target.device else ()
        after = dependencies(placed) or [()] * len(self.pending)
        number = {first: index for index, first in enumerate([*firsts, len(self.pending)])}
        jumps = {at: (number[to], when) for t in self.trips() for at, to, when in t.jumps}
        for first, run, most in zip(firsts, runs, threads, strict=True):
            if first in plans:
                yield fused_step(plans[first], run, windows, most)
            else:
                args = tuple(final_arg(arg) for arg in run[0].args)
                step = run[0].step
                name, items = run[0].function, step.work_items
                jump = Jump(written_place(run[0]), *jumps[first]) if first in jumps else None
                yield Step(run[0].layer, name, args, items, most, step.launch, jump, after[first])


def lower(
    graph: Graph,
    target: Target,
    build_object: Builder,
    *,
    threads: int = 1,
    progress: Progress | None = None,
    chooser: Chooser = choose,
    fuse: bool = True,
    print_sources: Printer | None = None,
) -> Program:
    """Lower a graph for a target.

    Args:
        graph: the network after all passes; it is not changed.
        target: the machine.
        build_object: compiles TIR functions (``dlcc.tir.build``).
        threads: upper bound on the threads of an instance.
        progress: told how far each phase is.
        chooser: picks the kernel of a layer.
        fuse: run steps band by band where that keeps large values in the cache.
        print_sources: prints the kernels as C too; None: nobody wants it.

    Raises:
        DlccError: a layer has no kernel on this target.
    """
    return lower_variants(
        (graph,),
        (target,),
        build_object,
        threads=threads,
        progress=progress,
        chooser=chooser,
        fuse=fuse,
        print_sources=print_sources,
    )


def lower_variants(
    graphs: Sequence[Graph],
    targets: Sequence[Target],
    build_object: Builder,
    *,
    threads: int = 1,
    progress: Progress | None = None,
    chooser: Chooser = choose,
    fuse: bool = True,
    print_sources: Printer | None = None,
    every: bool = True,
) -> Program:
    """Lower a network for several feature levels of one architecture, as variants of one program.

    Args:
        graphs: the network after all passes, once for each of its shape profiles; not changed.
        targets: from the least to the best.
        build_object: compiles TIR functions.
        threads: upper bound on the threads of an instance.
        progress: told how far each phase is.
        chooser: picks the kernel of a layer.
        fuse: run steps band by band.
        print_sources: prints the functions as C, too.
        every: keep also the variants that are predicted to gain nothing.

    Returns:
        The least variant of the first profile, with the others in :attr:`Program.better` and
        :attr:`Program.more_shapes`. Constants of equal bytes are stored once, and so is the code of
        equal kernels. Which of ``targets`` are not among the variants, and why, is in its report
        under ``left_out``.

    Raises:
        DlccError: a layer has no kernel on one of the targets.
    """
    tell = progress or (lambda _phase, _fraction: None)
    if len({(t.triple, t.alignment, t.slack) for t in targets}) != 1:
        raise ValueError("variants of a program are for one architecture")
    prepared = [prepare(graph, targets) for graph in graphs]
    for graph in prepared:
        check_short_floats(graph, targets)
        check_loops(graph, targets)
    kept, left_out = select(_chosen(prepared, targets, chooser, tell), every=every)
    weights = Weights(targets[0])
    prefixes = ["", *(variant.prefix for variant in kept[1:])]
    parts = [
        _Part(variant, Functions(prefix), prepared, threads, weights)
        for variant, prefix in zip(kept, prefixes, strict=True)
    ]
    tell("code", 0.0)
    for done, part in enumerate(parts):
        part.assemble(build_object, print_sources, fuse)
        tell("code", (done + 1) / len(parts))
    content = bytes(weights.blob)
    profiles = []
    for index in range(len(prepared)):
        arena_bytes = max(part.arena_bytes[index] for part in parts)
        programs = [part.program(index, arena_bytes, content) for part in parts]
        profiles.append(replace(programs[0], better=tuple(programs[1:])))
    if left_out:
        profiles[0].report["left_out"] = left_out
    return replace(profiles[0], more_shapes=tuple(profiles[1:]))


def _chosen(
    prepared: Sequence[Graph], targets: Sequence[Target], chooser: Chooser, tell: Progress
) -> list[Variant]:
    """The kernels of each feature level."""
    nodes = [[node for node in graph.nodes if computes(node)] for graph in prepared]
    found = [Variant(target, [[] for _ in nodes]) for target in targets]
    total, done = sum(map(len, nodes)) * len(found), 0
    tell("kernels", 0.0)
    for variant in found:
        for choices, own in zip(variant.choices, nodes, strict=True):
            for node in own:
                choices.append(chooser(node, variant.target))
                done += 1
                tell("kernels", done / total)
    return found


class _Part:
    """One variant on its way to a program for each shape profile."""

    def __init__(
        self,
        variant: Variant,
        functions: Functions,
        prepared: Sequence[Graph],
        threads: int,
        weights: Weights,
    ) -> None:
        self.variant, self.functions = variant, functions
        self.features = variant.features
        self.assemblers = [
            _Assembler(graph, variant.target, threads, weights, functions) for graph in prepared
        ]
        self.steps: list[tuple[Step | FusedStep, ...]] = []
        self.arena_bytes: list[int] = []
        self.object_code = b""
        self.sources: Mapping[str, KernelSource] = {}
        self.reports: list[dict[str, object]] = []

    def assemble(self, build_object: Builder, print_sources: Printer | None, fuse: bool) -> None:
        """Steps, places and constants of each profile, and the code of all."""
        target = self.variant.target
        for assembler, choices in zip(self.assemblers, self.variant.choices, strict=True):
            layers = []
            while choices:  # their constants are in memory twice for as short as can be
                choice = choices.pop(0)
                layers.append(layer_report(choice, assembler.add_layer(choice)))
            steps, arena_bytes, fused = assembler.finish(target.l2_bytes if fuse else 0)
            report_threads(layers, steps, assembler.threads)
            self.steps.append(steps)
            self.arena_bytes.append(arena_bytes)
            self.reports.append({"target": target.name, "layers": layers, "fusion": fused})
        self.object_code = build_object(self.functions.code, target)
        if print_sources is not None:
            items = work_items(step for a in self.assemblers for step in a.pending)
            self.sources = print_sources(self.functions.code, items, target)

    def program(self, index: int, arena_bytes: int, content: bytes) -> Program:
        """Of the profile with number ``index``."""
        assembler, target = self.assemblers[index], self.variant.target
        prepared = assembler.graph
        outputs = zip(prepared.output_names, prepared.outputs, strict=True)
        return Program(
            name=prepared.name,
            inputs=tuple(_info(v.name, v) for v in prepared.inputs),
            outputs=tuple(_info(n, v) for n, v in outputs),
            steps=self.steps[index],
            arena_bytes=arena_bytes,
            weights=content,
            weight_entries=tuple(assembler.weights.entries),
            object_code=self.object_code,
            triple=target.triple,
            features=self.features,
            threads=assembler.threads,
            variant=self.variant.name,
            alignment=target.alignment,
            device=target.device,
            input_places=assembler.tensor_places("input"),
            output_places=assembler.tensor_places("output"),
            sources=self.sources,
            transforms=assembler.weights.transforms,
            report=self.reports[index],
        )


def packed_weights(
    graphs: Sequence[Graph],
    choosers: Sequence[Sequence[tuple[Target, Chooser]]],
    fused: Sequence[Collection[str]],
) -> bytes:
    """The content of the weights file that :func:`lower_variants` makes, without any code.

    Args:
        graphs: the network after all passes, for each shape profile; not changed.
        choosers: for each profile, what picks the kernels of each variant, from the least to the
            best.
        fused: for each profile, the layers that are attention by one kernel.
    """
    weights = Weights(choosers[0][0][0])
    targets = [target for target, _ in choosers[0]]
    prepared = [prepare(g, targets, names) for g, names in zip(graphs, fused, strict=True)]
    for variant in zip(*choosers, strict=True):
        for graph, (target, chooser) in zip(prepared, variant, strict=True):
            for node in graph.nodes:
                if computes(node):
                    for name, array in chooser(node, target).plan.constants.items():
                        weights.add(array, node.loc, name, "")
    return bytes(weights.blob)


def _info(name: str, value: Value) -> TensorInfo:
    dtype, shape = str(value.type.storage.numpy), value.type.shape
    if isinstance(value.type.encoding, Affine) and value.type.encoding.axis is None:
        codes = value.type.encoding
        return TensorInfo(name, dtype, shape, codes.scale, codes.zero_point)
    return TensorInfo(name, dtype, shape)
