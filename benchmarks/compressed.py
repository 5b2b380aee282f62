"""Kernels of compressed weights beside the dense ones, at the shapes of some layers.

For each encoding (and sparsity, of those that leave weights out): time of the layer, how many times
as fast as the dense float32 and the dense int8 kernel it is, bytes of its weights, the kernel that
lowering chose, and the sparsity from which on it is the faster one.

    python benchmarks/compressed.py build DIR [--target cpu] [--shapes fc conv] [--only 16x4]
    python benchmarks/compressed.py time DIR [--seconds 10]

``build`` compiles one artifact per row, so that ``time`` does nothing but run them in turns on one
thread; it prints the 20th percentile of the layer's own steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

import dlcc
from dlcc.artifact import write_artifact
from dlcc.driver import build_object
from dlcc.ir import (
    Affine,
    Binary,
    Codebook,
    Dense,
    Encoding,
    Graph,
    Grouped,
    ProductCodebook,
    ResidualCodebook,
    Sparse,
    TensorType,
    Ternary,
    Value,
)
from dlcc.lowering.lower import lower
from dlcc.ops import build
from targets import get_target


def _uniform(bits: int, real: np.ndarray) -> Affine:
    return Affine.symmetric(bits, np.full(len(real), 0.5 / (2 ** (bits - 1) - 1)), 0)


SHAPES = {
    "fc": ("linear", (1, 9216), (4096, 9216), {}),
    "conv": ("conv2d", (1, 256, 14, 14), (256, 256, 3, 3), {"pads": (1, 1, 1, 1)}),
    "rows": ("linear", (8, 9216), (4096, 9216), {}),
    "conv7": ("conv2d", (1, 512, 7, 7), (512, 512, 3, 3), {"pads": (1, 1, 1, 1)}),
    "pointwise": ("conv2d", (1, 2048, 7, 7), (512, 2048, 1, 1), {}),
}
"""Op, input, weight and attributes: a fully connected layer, and a GEMM of 196 x 2304 x 256; the
first by several rows, and layers of few pixels and many channels."""

PATTERNS = {
    "fc": ["unstructured", "block1x4", "block4x4", "block16x1", "block16x4"],
    "conv": ["unstructured", "block1x4", "block4x4", "block16x4", "block32x4"],
}
"""Sparse ones, of the shapes that have them."""

LOW_BITS: dict[str, Callable[[np.ndarray], Encoding]] = {
    **{f"int{bits}": partial(_uniform, bits) for bits in (2, 3, 4, 6)},
    "ternary": lambda real: Ternary((0.4,) * len(real), (0.4,) * len(real), 0),
    "binary": lambda real: Binary((0.25,) * len(real), 0),
}
"""Encodings that hold every weight in a few bits, for the weights of a layer."""

CODEBOOKS = {
    "codebook4": (Codebook(4), (16,)),
    **{f"codebook{bits}": (Codebook(bits), (1 << bits,)) for bits in (5, 6, 8)},
    "product4x4": (ProductCodebook(4, 4), (2304, 16, 4)),
    "product4x8": (ProductCodebook(4, 8), (1152, 16, 8)),
    "outputs4x8": (ProductCodebook(4, 8, True, "output"), (1, 16, 8)),
    "outputs8x8": (ProductCodebook(8, 8, True, "output"), (1, 256, 8)),
    "outputs8x16": (ProductCodebook(8, 16, True, "output"), (1, 256, 16)),
    "product8x4": (ProductCodebook(8, 4, shared=True), (1, 256, 4)),
    "residual4x8": (ResidualCodebook(4, 8, 2), (2, 16, 8)),
    "residual8x8": (ResidualCodebook(8, 8, 2), (2, 256, 8)),
}
"""Encodings whose contents are drawn at random, as clustering takes long: shape of the codebook."""

GROUPS = {f"int{bits}x{group}": Grouped(bits, group) for bits, group in ((2, 64), (4, 32), (4, 64))}
"""Encodings with a scale per group of columns; for float32 activations."""

ACTIVATIONS = {32: "fp32", 8: "int8", 1: "signs"}
"""What the bits of activations are called."""

SHARED: dict[str, Callable[[np.ndarray], Encoding]] = {
    "pruned-ternary": LOW_BITS["ternary"],
    "pruned-codebook5": lambda _: Codebook(5),
}
"""Encodings of few values at the places of unstructured pruning; for float32 activations."""

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Row:
    """One artifact. ``pattern`` "dense": the kernel that the others are compared with.

    ``bits``: 32 for float32 activations, 8 for codes, 1 for signs.
    """

    shape: str
    pattern: str
    bits: int
    sparsity: float = 0.0

    @property
    def folder(self) -> str:
        """Name of its artifact."""
        return f"{self.shape}-{self.pattern}-{self.bits}-{100 * self.sparsity:.0f}"


def rows_of(shapes: list[str], only: str) -> Iterator[Row]:
    """The dense kernels of each shape, then all encodings."""
    for shape in shapes:
        yield Row(shape, "dense", 32)
        yield Row(shape, "dense", 8)
        more = (*CODEBOOKS, *GROUPS) if shape == "fc" else ("codebook4",)
        low = [(p, 8) for p in LOW_BITS] + [(p, 32) for p in (*LOW_BITS, *more)]
        for pattern, bits in low:
            if only in f"{pattern}-{bits}":
                yield Row(shape, pattern, bits)
        if only in "binary-1" and shape in PATTERNS:
            yield Row(shape, "binary", 1)
        for pattern in SHARED if shape == "fc" else ():
            if only in f"{pattern}-32":
                yield from (Row(shape, pattern, 32, s) for s in SPARSITIES)
        for pattern in PATTERNS.get(shape, ()):
            for bits in (32, 8):
                if only in f"{pattern}-{bits}":
                    yield from (Row(shape, pattern, bits, s) for s in SPARSITIES)


def mask_of(row: Row, weight: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Which weights are kept, in the pattern's blocks; kernel places outside, channels inside."""
    r, c = map(int, row.pattern[5:].split("x")) if row.pattern.startswith("block") else (1, 1)
    columns = int(np.prod(weight[1:]))
    kept = rng.random((-(-weight[0] // r), -(-columns // c)), np.float32) >= row.sparsity
    matrix = np.repeat(np.repeat(kept, r, 0), c, 1)[: weight[0], :columns]
    return np.moveaxis(matrix.reshape(weight[0], *weight[2:], weight[1]), -1, 1)


def coded_at_random(
    graph: Graph, pattern: str, shape: tuple[int, ...], rng: np.random.Generator
) -> Value:
    """A weight of one of CODEBOOKS."""
    encoding, book = CODEBOOKS[pattern]
    runs = int(np.prod(shape)) // (book[2] if len(book) > 1 else 1)
    runs *= getattr(encoding, "stages", 1)
    values = rng.integers(0, 256, runs * encoding.bits // 8, dtype=np.uint8)
    parts = {"values": values, "codebook": rng.standard_normal(book, np.float32)}
    return graph.add_stored(parts, TensorType(shape, encoding=encoding), name="w")


def graph_of(row: Row) -> Graph:
    """A network of a ReLU, the layer and a pool, on codes where ``bits`` is 8, on signs for 1."""
    rng = np.random.default_rng(0)
    op, shape, weight, attrs = SHAPES[row.shape]
    graph, encoding = Graph("layer"), Affine.per_tensor(8, False, 0.02, 7)
    x = graph.add_input("x", TensorType(shape, encoding=encoding if row.bits == 8 else Dense()))
    relu = build(graph, "relu", [x], loc="before")
    relu.output.type = relu.output.type.with_(encoding=x.type.encoding)
    source, signs = relu.output, Binary((1.0,))
    if row.bits == 1:
        types = [x.type.with_(encoding=signs)]
        source = build(graph, "quantize", [x], loc="signs", types=types).output
    real = rng.random(weight, np.float32) - np.float32(0.5)
    inner: Affine | Dense = Dense()
    if row.bits == 8:
        inner = Affine.symmetric(8, np.full(weight[0], 0.5 / 127), 0)
    if row.pattern in LOW_BITS:
        w = graph.add_constant(real, encoding=LOW_BITS[row.pattern](real), name="w")
    elif row.pattern in GROUPS:
        w = graph.add_constant(real, encoding=GROUPS[row.pattern], name="w")
    elif row.pattern in CODEBOOKS:
        w = coded_at_random(graph, row.pattern, weight, rng)
    elif row.pattern in SHARED:
        real = (np.floor(real * 32) + np.float32(0.5)) / np.float32(32)  # of 32 values
        real *= mask_of(row, weight, rng)
        few = Sparse("unstructured", SHARED[row.pattern](real))
        w = graph.add_constant(real, encoding=few, name="w")
    elif row.pattern != "dense":
        real *= mask_of(row, weight, rng)
        w = graph.add_constant(real, encoding=Sparse(row.pattern, inner), name="w")
    else:
        w = graph.add_constant(real, encoding=inner, name="w")
    node = build(graph, op, [source, w], attrs, loc="layer")
    if row.bits == 8:
        out = Affine.per_tensor(8, False, 0.5, 128)
        node.output.type = node.output.type.with_(encoding=out)
    y = node.output
    if row.bits == 1:
        y.type = y.type.with_(encoding=signs)
        y = build(graph, "dequantize", [y], loc="after").output
    elif op == "conv2d":  # the layer's own layout ends here: its time holds no transpose
        pool = build(graph, "max_pool2d", [y], {"kernel": y.type.shape[2:]}, loc="after")
        pool.output.type = pool.output.type.with_(encoding=y.type.encoding)
        y = pool.output
    graph.set_outputs([y], ["y"])
    return graph


def build_all(args: argparse.Namespace) -> None:
    """Compile every row into the folder."""
    target = get_target(args.target)
    for row in rows_of(args.shapes, args.only):
        folder = args.folder / row.folder
        program = lower(graph_of(row), target, build_object, fuse=False)
        write_artifact(program, folder)
        layer = next(r for r in program.report["layers"] if r["layer"] == "layer")
        told = {key: layer[key] for key in ("kernel", "variant", "weight_bytes")}
        told["weights"] = layer.get("weights", "dense")
        told |= {"predicted": layer["predicted_seconds"], "target": target.name}
        (folder / "row.json").write_text(json.dumps(asdict(row) | told))
        print(f"{row.folder}: {layer['kernel']} ({layer['variant']})", flush=True)


def time_all(folder: Path, seconds: float) -> dict[Row, tuple[float, dict]]:
    """Seconds of each row's layer (20th percentile, interleaved), and what was told of it."""
    found, models = {}, []
    for path in sorted(folder.glob("*/row.json")):
        told = json.loads(path.read_text())
        row = Row(told["shape"], told["pattern"], told["bits"], told["sparsity"])
        model = dlcc.load(path.parent, threads=1)
        shape = SHAPES[row.shape][1]
        x = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        x = x if row.bits == 8 else (x / np.float32(255)).astype(np.float32)
        models.append((row, told, model, x, []))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _, _, model, x, times in models:
            stop = time.monotonic() + 0.005
            while not times or time.monotonic() < stop:
                steps = model.profile(x)
                times.append(sum(s.nanoseconds for s in steps if s.layer == "layer") * 1e-9)
    for row, told, model, _, times in models:
        model.close()
        found[row] = float(np.percentile(times, 20)), told
    return found


def break_even(points: list[tuple[float, float]], dense: float) -> str:
    """The sparsity from which on the times of ``points`` stay below ``dense``.

    A time is infinite where lowering decoded the weights.
    """
    points = sorted(points)
    if points[-1][1] >= dense:
        return "-"
    at = max((i for i, (_, t) in enumerate(points) if t >= dense), default=-1)
    if at < 0:
        return f"<{100 * points[0][0]:.0f} %"
    (s0, t0), (s1, t1) = points[at], points[at + 1]
    if t0 == float("inf"):
        return f"<{100 * s1:.0f} %"
    return f"{100 * (s0 + (s1 - s0) * (t0 - dense) / (t0 - t1)):.0f} %"


def show(found: dict[Row, tuple[float, dict]]) -> None:
    """A markdown table for each shape."""
    for shape in dict.fromkeys(row.shape for row in found):
        full, small = (found[Row(shape, "dense", bits)] for bits in (32, 8))
        print(f"\n{shape} {SHAPES[shape][1]} x {SHAPES[shape][2]}, {full[1]['target']}\n")
        heads = ["weights", "sparsity", "us", "predicted", "x fp32", "x int8", "kB", "kernel"]
        print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
        for row, (seconds, told) in sorted(found.items(), key=lambda e: str(e[0])):
            if row.shape == shape:
                cells = [
                    f"{row.pattern} {ACTIVATIONS[row.bits]}",
                    f"{100 * row.sparsity:.0f} %",
                    f"{seconds * 1e6:.1f}",
                    f"{told['predicted'] * 1e6:.1f}",
                    f"{full[0] / seconds:.2f}",
                    f"{small[0] / seconds:.2f}",
                    f"{told['weight_bytes'] / 1000:.0f}",
                    f"{told['kernel']} {told['variant']}",
                ]
                print("| " + " | ".join(cells) + " |")
        told = [f"- {p} {b} bits: {', '.join(told)}" for p, b, told in crossings(found, shape)]
        if told:
            print("\nbreak-even against dense fp32 and int8:", *told, sep="\n")


def crossings(
    found: dict[Row, tuple[float, dict]], shape: str
) -> Iterator[tuple[str, int, list[str]]]:
    """For each pattern and bits: from which sparsity on it beats dense fp32, and dense int8."""
    dense = [found[Row(shape, "dense", bits)][0] for bits in (32, 8)]
    rows = {
        row: float("inf") if told["weights"] == "decoded" else seconds
        for row, (seconds, told) in found.items()
        if row.shape == shape
    }
    for pattern, bits in dict.fromkeys((row.pattern, row.bits) for row in rows):
        points = [
            (r.sparsity, t) for r, t in rows.items() if (r.pattern, r.bits) == (pattern, bits)
        ]
        if pattern not in ("dense", *LOW_BITS, *CODEBOOKS):
            yield pattern, bits, [break_even(points, seconds) for seconds in dense]


def main() -> None:
    """Build or time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("build", "time"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--only", default="", help="patterns and bits that contain this text")
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    if args.what == "build":
        args.folder.mkdir(parents=True, exist_ok=True)
        build_all(args)
    else:
        show(time_all(args.folder, args.seconds))


if __name__ == "__main__":
    main()
