"""What is in a model or an artifact: per layer and per byte."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcc.artifact import Artifact, account
from dlcc.errors import DlccError, ExitCode
from dlcc.executable import open_compiled, random_feed
from dlcc.ir import Affine, Graph, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.limits import Limits, Work
from dlcc.ops.base import op_of

if TYPE_CHECKING:
    from dlcc.remote.board import Board

PROFILE_RUNS, PROFILE_SECONDS, PROFILE_MOST_RUNS = 20, 0.1, 2000


@dataclass
class Layer:
    """One layer.

    Attributes:
        layer: name of the original node.
        op: op of the IR.
        kernel: name of the chosen kernel ("" in a model).
        why: its predicted cost, and why each other kernel was not taken ("" in a model).
        encoding: how operands and result are stored, e.g. ``u8 x s8/axis0 -> u8``.
        shape: shape of the first result.
        weight_bytes: bytes of its constants (a shared constant counts at its first user).
        macs: multiply-accumulates of one inference.
        seconds: median time of one inference, where it was measured.
        activation_bytes: bytes of its inputs and outputs (0 in a model).
        limit_seconds: what the machine needs for it at least, where its time was measured.
        stored_bytes: what its constants take of a packed weights file; None: as much as in memory.
        functions: its kernels' functions (none in a model).
    """

    layer: str
    op: str
    kernel: str
    why: str
    encoding: str
    shape: tuple[int, ...]
    weight_bytes: int
    macs: int
    seconds: float | None = None
    activation_bytes: int = 0
    limit_seconds: float | None = None
    stored_bytes: int | None = None
    functions: tuple[str, ...] = ()


@dataclass
class Report:
    """What ``dlcc inspect`` shows.

    Attributes:
        kind: "artifact" or "model".
        name: name of the network.
        facts: single facts by name (target, features, pipeline, arena bytes, ...).
        inputs: one text per input.
        outputs: one text per output.
        layers: in execution order.
        bytes: (file, section, bytes): every byte of every file (artifacts only).
        files: size of each file (artifacts only).
    """

    kind: str
    name: str
    facts: dict[str, Any]
    inputs: list[str]
    outputs: list[str]
    layers: list[Layer]
    bytes: list[tuple[str, str, int]] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)

    def by_kernel(self) -> list[tuple[str, int, int, int]]:
        """(kernel or op, layers, weight bytes, MACs), most layers first."""
        counts: dict[str, list[int]] = {}
        for layer in self.layers:
            row = counts.setdefault(layer.kernel or layer.op, [0, 0, 0])
            row[0] += 1
            row[1] += layer.weight_bytes
            row[2] += layer.macs
        rows = [(name, row[0], row[1], row[2]) for name, row in counts.items()]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        data = asdict(self)
        data["bytes"] = [{"file": f, "section": s, "bytes": n} for f, s, n in self.bytes]
        data["total_bytes"] = sum(self.files.values())
        return data


# -- artifacts ---------------------------------------------------------------------------------


def inspect_artifact(
    folder: str | Path,
    *,
    profile: bool = False,
    feed: Mapping[str, Array] | None = None,
    threads: int = 0,
    limits: Callable[[int], Limits] | None = None,
    board: Board | None = None,
    variant: str | None = None,
    shape_profile: int = 0,
) -> Report:
    """Everything about an artifact; the sizes sum to the sizes of its files.

    Args:
        folder: the artifact.
        profile: measure each layer's time: the median of :data:`PROFILE_RUNS` runs or more.
        feed: inputs for that, by name; random ones where None.
        threads: threads for that; 0: as many as there are CPUs.
        limits: gives the machine's limits for a number of threads, to compare the times with.
        board: where the times are measured; None for this machine.
        variant: the variant of the kernels whose layers are told; None: the best, or the one that
            is measured.
        shape_profile: number of the shape profile whose layers are told and measured.

    Raises:
        DlccError: ARTIFACT if a file is missing or corrupt; DATA if ``feed`` does not fit; USAGE if
            there is no such variant or profile.
    """
    artifact = Artifact.open(folder)
    artifact.verify()
    rows = account(artifact)
    files = {name: (artifact.folder / name).stat().st_size for name in {r[0] for r in rows}}
    _check_sums(rows, files, artifact.folder)
    report = artifact.report()
    shown = artifact.shape_profile(shape_profile)
    used, times = 0, dict[str, float]()
    if profile:
        given = random_feed(shown.inputs) if feed is None else dict(feed)
        variant, used, runs = _profile(artifact, given, threads, board, variant)
        times = _medians(artifact.variant(variant, shape_profile)["steps"], runs)
    told = artifact.variant(variant or list(artifact.variants)[-1], shape_profile)
    manifest = artifact.manifest
    facts = _facts(artifact, shape_profile, str(told["variant"]))
    try:
        if facts["pack"] == "size":
            facts["stored_weight_bytes"] = int(report["storage"]["file_bytes"])
        layers = _artifact_layers(manifest, report, times, told, shape_profile)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise artifact.bad_report(error) from None
    if profile:
        facts["profiled_threads"] = used
        if limits is not None:
            _add_limits(layers, limits(used), manifest, told["features"])
    return Report(
        "artifact",
        str(manifest["name"]),
        facts,
        [f"{t.name}: {t.dtype}{list(t.shape)}" for t in shown.inputs],
        [f"{t.name}: {t.dtype}{list(t.shape)}" for t in shown.outputs],
        layers,
        rows,
        dict(sorted(files.items())),
    )


def _facts(artifact: Artifact, shape_profile: int, variant: str) -> dict[str, Any]:
    """Single facts about an artifact, of which a shape profile and a variant are shown."""
    manifest, profiles = artifact.manifest, artifact.shape_profiles
    weights = manifest["weights"]
    facts: dict[str, Any] = {"source": str(artifact.folder)}
    keys = ("target", "triple", "pipeline", "threads", "arena_bytes", "stack_bytes", "features")
    facts |= {key: manifest[key] for key in (*keys, "needed", "tf32") if key in manifest}
    facts["arena_bytes"] = profiles[shape_profile].arena_bytes
    if len(profiles) > 1:
        facts["shape_profiles"] = {
            f"{number}: {profile}": f"adds {row['added_bytes']} bytes of weights"
            for number, (profile, row) in enumerate(
                zip(profiles, weights.get("shape_profiles", ()), strict=False)
            )
        }
        facts["shown_shape_profile"] = shape_profile
    if manifest["better"]:
        facts["variants"] = {
            row[
                "variant"
            ]: f"adds {row['added_bytes']} bytes of weights, {row['code_bytes']} of code"
            for row in weights["variants"]
        }
        facts["shown_variant"] = variant
    facts["weight_bytes"], facts["pack"] = weights["content_bytes"], weights["pack"]
    return facts


def _check_sums(
    rows: Sequence[tuple[str, str, int]], files: Mapping[str, int], folder: Path
) -> None:
    sums: Counter[str] = Counter()
    for name, _, size in rows:
        sums[name] += size
    for name, size in files.items():
        if sums[name] != size:
            raise DlccError(
                ExitCode.INTERNAL,
                f"the sections of {name} do not sum to its size",
                where=str(folder),
                why=f"they sum to {sums[name]} of {size} bytes",
                fix="report this",
            )


def _artifact_layers(
    manifest: Mapping[str, Any],
    report: Mapping[str, Any],
    times: Mapping[str, float],
    variant: Mapping[str, Any],
    profile: int,
) -> list[Layer]:
    sizes: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    packed = manifest["weights"]["pack"] == "size"
    name = variant["variant"]
    for entry in manifest["weights"]["entries"]:
        if name not in entry.get("variants", (name,)):
            continue
        if profile not in entry.get("shape_profiles", (profile,)):
            continue
        sizes[entry["layer"]] += entry["size"]
        stored[entry["layer"]] += entry["stored"] if packed else 0
    own = report["more_shapes"][profile - 1] if profile else report
    rows = (row for row in own.get("better", ()) if row["variant"] == name)
    described: list[Mapping[str, Any]] = list(next(rows, own).get("layers", ()))
    known = {row.get("layer") for row in described}
    for step in variant["steps"]:  # a layer that report.json does not describe
        if step["layer"] not in known:
            known.add(step["layer"])
            described.append({"layer": step["layer"], "functions": [step["function"]]})
    repeated = Counter(row.get("layer", "") for row in described)
    layers = []
    for row in described:
        name = str(row.get("layer", ""))
        inputs, outputs = list(row.get("inputs", ())), list(row.get("outputs", ()))
        alone = repeated[name] == 1
        layers.append(
            Layer(
                layer=name,
                op=str(row.get("op", "")),
                kernel=str(row.get("kernel", "")),
                why=_why(row),
                encoding=_encodings(inputs, outputs),
                shape=_shape_of(outputs[0]) if outputs else (),
                # nodes split from one layer share its name: only their own report tells them apart
                weight_bytes=sizes[name] if alone else _count(row, "weight_bytes"),
                macs=_count(row, "macs"),
                seconds=_time_of(name, row, times, alone),
                activation_bytes=_count(row, "activation_bytes"),
                stored_bytes=stored.pop(name, 0) if packed else None,
                functions=tuple(row.get("functions", ())),
            )
        )
    return layers


def _count(row: Mapping[str, Any], key: str) -> int:
    """A number of something.

    Raises:
        ValueError: it is none.
    """
    value = int(row.get(key, 0))
    if not 0 <= value < 1 << 63:
        raise ValueError(f"{key} is {str(value)[:40]}")
    return value


def _why(row: Mapping[str, Any]) -> str:
    """The cost that won, and what speaks against each other kernel."""
    reasons = [f"not {other}: {why}" for other, why in row.get("rejected", {}).items()]
    if row.get("weights") == "decoded":
        reasons.insert(0, "its compressed weights are decoded to dense ones")
    if "predicted_seconds" in row:
        threads = f", up to {row['threads']} threads" if row.get("threads", 1) > 1 else ""
        reasons.insert(0, f"predicted {1e6 * float(row['predicted_seconds']):.1f} us{threads}")
    return "; ".join(reasons)


def _time_of(
    name: str, row: Mapping[str, Any], times: Mapping[str, float], alone: bool
) -> float | None:
    if not times:
        return None
    if alone:
        found = [t for key, t in times.items() if key.partition("\0")[0] == name]
    else:
        keys = (f"{name}\0{f}" for f in row.get("functions", ()))
        found = [times[key] for key in keys if key in times]
    return sum(found) if found else None  # a fused step has one time, on a line of its own


def _add_limits(
    layers: Sequence[Layer], limits: Limits, manifest: Mapping[str, Any], features: Sequence[str]
) -> None:
    weights = int(manifest["weights"]["content_bytes"])
    for layer in layers:
        layer.limit_seconds = limits.least_seconds(work_of(layer), features, weights)


def work_of(layer: Layer) -> Work:
    """What a layer of an artifact cannot avoid."""
    operands = layer.encoding.partition(" -> ")[0].split(" x ")
    kind = "fp32"
    if re.fullmatch(r"[us]8(/axis\d+)?|uint8|int8", operands[0]):
        kind = "int8"
    elif any(operand.startswith("bf16") for operand in operands):
        kind = "bf16"
    return Work(kind, layer.macs, layer.weight_bytes, layer.activation_bytes)


def _profile(
    artifact: Artifact,
    feed: Mapping[str, Array],
    threads: int,
    board: Board | None,
    variant: str | None,
) -> tuple[str, int, list[list[int]]]:
    """The variant that ran, its threads, and nanoseconds of each step of each run."""
    # An artifact has an upper bound on threads: take fewer rather than fail.
    most = min(threads, int(artifact.manifest["threads"]))
    with open_compiled(artifact.folder, most, board, variant) as network:
        runs = network.profile(
            feed,
            least_seconds=PROFILE_SECONDS,
            least_runs=PROFILE_RUNS,
            most_runs=PROFILE_MOST_RUNS,
        )
        return network.variant, network.threads, runs


def _medians(
    steps: Sequence[Mapping[str, Any]], samples: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Median seconds by ``layer NUL function``."""
    keys = [f"{s['layer']}\0{s['function']}" for s in steps]
    runs: list[dict[str, float]] = []
    for times in samples:
        total: Counter[str] = Counter()
        for key, nanoseconds in zip(keys, times, strict=False):
            total[key] += nanoseconds
        runs.append({key: ns * 1e-9 for key, ns in total.items()})
    return {key: statistics.median(run[key] for run in runs) for key in next(iter(runs), {})}


_TYPE = re.compile(
    r"(?P<dtype>[a-z0-9]+)\[(?P<shape>[0-9,]*)\](?:!(?P<encoding>\w+)<(?P<fields>.*)>)?"
)


def short_type(text: str) -> str:
    """Storage of a type's text form: ``f32[4]!affine<bits=8, signed=true, axis=0>`` -> s8/axis0."""
    match = _TYPE.match(text)
    if match is None:
        return text
    if not match["encoding"]:
        return match["dtype"]
    fields = match["fields"]
    if match["encoding"] != "affine":
        return match["encoding"]
    bits = re.search(r"\bbits=(\d+)", fields)
    axis = re.search(r"\baxis=(\d+)", fields)
    name = ("s" if "signed=true" in fields else "u") + (bits[1] if bits else "?")
    return f"{name}/axis{axis[1]}" if axis else name


def _encodings(inputs: Sequence[str], outputs: Sequence[str]) -> str:
    if not inputs and not outputs:
        return ""
    left = " x ".join(short_type(t) for t in inputs if t != "-")
    return f"{left} -> {' '.join(short_type(t) for t in outputs)}"


def _shape_of(text: str) -> tuple[int, ...]:
    match = _TYPE.match(text)
    if match is None or not match["shape"]:
        return ()
    return tuple(int(n) for n in match["shape"].split(","))


# -- models ------------------------------------------------------------------------------------


def type_summary(type_: TensorType) -> str:
    """How a value is stored, in short: ``f32``, ``u8``, ``s8/axis0``."""
    if type_.is_dense:
        return str(type_.dtype)
    if isinstance(type_.encoding, Affine):
        name = f"{'s' if type_.encoding.signed else 'u'}{type_.encoding.bits}"
        axis = type_.encoding.axis
        return name if axis is None else f"{name}/axis{axis}"
    return type_.encoding.name


def constant_bytes(value: Value) -> int:
    """Exact bytes of a constant in its encoding."""
    assert value.constant is not None
    return value.type.encoding.stored_bytes(value.constant.parts)


def inspect_model(graph: Graph, source: str) -> Report:
    """Everything about a graph: ops, parameters, MACs, encodings."""
    seen: set[Value] = set()
    layers = [_model_layer(node, seen) for node in graph.nodes]
    constants = graph.constants()
    facts: dict[str, Any] = {
        "source": source,
        "nodes": len(graph.nodes),
        "parameters": sum(v.type.elements for v in constants),
        "parameter_bytes": sum(constant_bytes(v) for v in constants),
        "macs": sum(layer.macs for layer in layers),
        "ops": dict(Counter(node.op for node in graph.nodes).most_common()),
        "encodings": dict(Counter(type_summary(v.type) for v in graph.values()).most_common()),
    }
    outputs = zip(graph.output_names, graph.outputs, strict=True)
    return Report(
        "model",
        graph.name,
        facts,
        [f"{v.name}: {type_summary(v.type)}{list(v.type.shape)}" for v in graph.inputs],
        [f"{name}: {type_summary(v.type)}{list(v.type.shape)}" for name, v in outputs],
        layers,
    )


def _model_layer(node: Node, seen: set[Value]) -> Layer:
    new = [v for v in node.inputs if v is not None and v.is_constant and v not in seen]
    seen.update(new)
    left = " x ".join(type_summary(v.type) for v in node.inputs if v is not None)
    right = " ".join(type_summary(v.type) for v in node.outputs)
    return Layer(
        layer=node.loc,
        op=node.op,
        kernel="",
        why="",
        encoding=f"{left} -> {right}",
        shape=node.outputs[0].type.shape,
        weight_bytes=sum(constant_bytes(v) for v in dict.fromkeys(new)),
        macs=op_of(node).macs(node),
    )


def model_file_bytes(path: Path) -> int:
    """Bytes of a model file with the files that belong to it (sidecar, external data)."""
    total: int = path.stat().st_size
    if path.suffix == ".dlir":
        sidecar = path.with_suffix(".npz")
        return total + (sidecar.stat().st_size if sidecar.is_file() else 0)
    from dlcc.frontends.onnx_model import read_model

    names: set[str] = {
        str(entry.value)
        for tensor in read_model(path).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    parts = [path.parent / name for name in names]
    return total + sum(part.stat().st_size for part in parts if part.is_file())


__all__ = [
    "PROFILE_RUNS",
    "Layer",
    "Report",
    "constant_bytes",
    "inspect_artifact",
    "inspect_model",
    "model_file_bytes",
    "short_type",
    "type_summary",
    "work_of",
]
