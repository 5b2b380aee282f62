"""From a graph to a :class:`~dlcc.program.Program`: layouts, kernel choice, memory plan, code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlcc.analysis.verify import verify
from dlcc.ir import Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ir.text import encoding_text, type_text
from dlcc.lowering.choice import Choice, Chooser, choose
from dlcc.lowering.kernel import ARENA_SLACK, KernelStep
from dlcc.lowering.layout import assign_layouts
from dlcc.lowering.memory import Span, place
from dlcc.lowering.target import Target
from dlcc.lowering.threads import Work, worthwhile_threads
from dlcc.lowering.unsigned import make_activations_unsigned
from dlcc.lowering.views import Buffer, assign_buffers, is_aliased, pin_outputs
from dlcc.ops.base import op_of
from dlcc.program import ALIGNMENT, Arg, Program, Step, TensorInfo, WeightEntry

Progress = Callable[[str, float], None]
"""Called with a phase's name and the fraction of it that is done."""

Builder = Callable[[dict[str, Any], Target], bytes]
"""Compiles named TIR functions to a relocatable object."""


def prepare(graph: Graph) -> Graph:
    """A copy of ``graph`` as the kernels want it; same reference results, bit for bit."""
    out = graph.copy()
    make_activations_unsigned(out)
    assign_layouts(out)
    pin_outputs(out)
    verify(out)
    return out


class _Weights:
    """The weights blob: constants packed for their kernels, equal ones stored once."""

    def __init__(self) -> None:
        self.blob = bytearray()
        self.entries: list[WeightEntry] = []
        self._offsets: dict[bytes, int] = {}

    def add(self, array: Array, layer: str, name: str, encoding: str) -> int:
        raw = np.ascontiguousarray(array).tobytes()
        digest = hashlib.sha256(raw).digest()
        if digest not in self._offsets:
            self.blob += b"\0" * (-len(self.blob) % ALIGNMENT)
            self._offsets[digest] = len(self.blob)
            self.entries.append(WeightEntry(layer, name, len(self.blob), len(raw), encoding))
            # vector loads may run past the end of the last row
            self.blob += raw + b"\0" * ARENA_SLACK
        return self._offsets[digest]


class _Functions:
    """Kernel functions by what determines their code: identical layers share one."""

    def __init__(self) -> None:
        self.code: dict[str, Any] = {}

    def add(self, step: KernelStep) -> str:
        if step.name_key not in self.code:
            self.code[step.name_key] = step.build()
        return step.name_key


@dataclass
class _Scratch:
    span: Span
    per_thread: int


class _Assembler:
    """Turns chosen kernels into steps, spans and weights."""

    def __init__(self, graph: Graph, threads: int) -> None:
        self.graph = graph
        self.threads = threads
        self.buffers = assign_buffers(graph)
        self.weights = _Weights()
        self.functions = _Functions()
        self.spans: dict[int, Span] = {}
        self.pending: list[tuple[Step, list[Arg | Buffer | _Scratch]]] = []
        self.work: list[Work] = []
        self.scratches: list[_Scratch] = []

    def add_layer(self, choice: Choice) -> list[str]:
        """Append the layer's steps; returns the names of their functions."""
        plan, node = choice.plan, choice.node
        first = len(self.pending)
        last = first + len(plan.steps) - 1
        for value in (*node.inputs, *node.outputs):
            if value is not None and not value.is_constant:
                self._extend(self.buffers[value], first, last)
        shared = [_Scratch(Span(size, first, last), 0) for size in plan.scratch]
        private = [
            _Scratch(Span(_round_up(size) * self.threads, first, last), _round_up(size))
            for size in plan.thread_scratch
        ]
        self.scratches += shared + private
        constants = {
            name: self.weights.add(array, node.loc, name, self._encoding_of(node, name))
            for name, array in plan.constants.items()
        }
        activations = [v for v in node.inputs if v is not None and not v.is_constant]
        names = []
        for step in plan.steps:
            args: list[Arg | Buffer | _Scratch] = []
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
            self.pending.append((Step(node.loc, names[-1], (), step.work_items), args))
            self.work.append(Work(step.seconds or choice.seconds, _bytes_read(step, args)))
        return names

    def _encoding_of(self, node: Node, name: str) -> str:
        for index, operand in enumerate(op_of(node).operands):
            value = node.optional_input(index)
            if operand.rstrip("?*") == name and value is not None and value.is_constant:
                return encoding_text(value.type.encoding)
        return ""

    def _extend(self, buffer: Buffer, first: int, last: int) -> None:
        span = self.spans.setdefault(id(buffer), Span(buffer.size, first, last))
        span.first, span.last = min(span.first, first), max(span.last, last)

    def finish(self) -> tuple[tuple[Step, ...], int]:
        """Place everything; returns the final steps and the arena's size in bytes."""
        arena = {
            id(b): b for b in self.buffers.values() if b.kind == "arena" and id(b) in self.spans
        }
        spans = [self.spans[key] for key in arena] + [s.span for s in self.scratches]
        size = place(spans, ARENA_SLACK)
        for key, buffer in arena.items():
            buffer.offset = self.spans[key].offset
        steps = []
        threads = worthwhile_threads(self.work, self.threads)
        for (step, args), most in zip(self.pending, threads, strict=True):
            final = tuple(_final_arg(arg) for arg in args)
            steps.append(replace(step, args=final, max_threads=most))
        return tuple(steps), size


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _bytes_read(step: KernelStep, args: list[Arg | Buffer | _Scratch]) -> int:
    """Bytes of the activations that a step reads."""
    sizes = 0
    for (kind, _), arg in zip(step.args, args, strict=True):
        if kind == "in" and isinstance(arg, Buffer):
            sizes += arg.size
        elif kind == "scratch" and isinstance(arg, _Scratch):
            sizes += arg.span.size
    return sizes


def _final_arg(arg: Arg | Buffer | _Scratch) -> Arg:
    if isinstance(arg, Buffer):
        return Arg(arg.kind, arg.offset, arg.index)
    if isinstance(arg, _Scratch):
        return Arg("arena", arg.span.offset, 0, arg.per_thread)
    return arg


def _layer_report(choice: Choice, functions: list[str]) -> dict[str, object]:
    node = choice.node
    return {
        "layer": node.loc,
        "op": node.op,
        "kernel": choice.row.name,
        "variant": choice.plan.kernel,
        "functions": functions,
        "predicted_seconds": choice.seconds,
        **({"tuned": choice.tuned} if choice.tuned else {}),
        "rejected": choice.rejected,
        "macs": op_of(node).macs(node),
        "inputs": ["-" if v is None else type_text(v.type) for v in node.inputs],
        "outputs": [type_text(v.type) for v in node.outputs],
        "weight_bytes": sum(int(a.nbytes) for a in choice.plan.constants.values()),
        "activation_bytes": sum(
            v.type.elements * v.type.storage.bytes
            for v in dict.fromkeys((*node.inputs, *node.outputs))
            if v is not None and not v.is_constant
        ),
    }


def _report_threads(layers: list[dict[str, object]], steps: tuple[Step, ...], threads: int) -> None:
    """Adds to each layer how many threads its widest step is split over at most."""
    widest: dict[str, int] = {}
    for step in steps:
        widest[step.layer] = max(widest.get(step.layer, 1), step.max_threads or threads)
    for layer in layers:
        layer["threads"] = widest.get(str(layer["layer"]), 1)


def lower(
    graph: Graph,
    target: Target,
    build_object: Builder,
    *,
    threads: int = 1,
    progress: Progress | None = None,
    chooser: Chooser = choose,
) -> Program:
    """Lower a graph for a target.

    Args:
        graph: the network after all passes; it is not changed.
        target: the machine.
        build_object: compiles TIR functions (``dlcc.tir.build``).
        threads: upper bound on the threads of an instance.
        progress: told how far each phase is.
        chooser: picks the kernel of a layer.

    Raises:
        DlccError: a layer has no kernel on this target.
    """
    tell = progress or (lambda _phase, _fraction: None)
    prepared = prepare(graph)
    assembler = _Assembler(prepared, threads)
    layers: list[dict[str, object]] = []
    needed: set[str] = set()
    work = [node for node in prepared.nodes if not is_aliased(node)]
    tell("kernels", 0.0)
    for done, node in enumerate(work):
        choice = chooser(node, target)
        needed.update(choice.plan.features)
        layers.append(_layer_report(choice, assembler.add_layer(choice)))
        tell("kernels", (done + 1) / len(work))
    tell("code", 0.0)
    steps, arena_bytes = assembler.finish()
    _report_threads(layers, steps, threads)
    object_code = build_object(assembler.functions.code, target)
    tell("code", 1.0)
    return Program(
        name=prepared.name,
        inputs=tuple(_info(v.name, v) for v in prepared.inputs),
        outputs=tuple(
            _info(n, v) for n, v in zip(prepared.output_names, prepared.outputs, strict=True)
        ),
        steps=steps,
        arena_bytes=arena_bytes,
        weights=bytes(assembler.weights.blob),
        weight_entries=tuple(assembler.weights.entries),
        object_code=object_code,
        triple=target.triple,
        features=tuple(f for f in target.features if f in needed),
        threads=threads,
        report={"target": target.name, "layers": layers},
    )


def _info(name: str, value: Value) -> TensorInfo:
    return TensorInfo(name, str(value.type.storage.numpy), value.type.shape)
