"""Who is compared on a GPU, and at which precisions."""

from __future__ import annotations

from typing import Final

from benchmarks.peers.catalogue import BATCHES, HALF, Contender

PACKAGE: Final = "benchmarks.gpu.engines"
MODULES: Final = {
    "torch_eager": "torch",
    "torch_compile": "torch",
    "torch_graphs": "torch",
    "onnxruntime_cuda": "onnxruntime",
    "tensorrt": "tensorrt",
}
"""What has to be importable for an engine."""


def _of(engine: str, *precisions: str, product: str = "") -> tuple[Contender, ...]:
    return tuple(Contender(engine, p, product=product, package=PACKAGE) for p in precisions)


CONTENDERS: Final = {
    c.name: c
    for c in (
        *_of("dlcc", "int8", "fp16", "fp32"),
        *_of("torch_eager", "fp32", "tf32", "fp16"),
        *_of("torch_compile", "fp32", "tf32", "fp16"),
        *_of("torch_graphs", "fp32", "tf32", "fp16"),
        *_of("onnxruntime_cuda", "fp32", "tf32", product=BATCHES),
        *_of("onnxruntime_cuda", "fp16", product=HALF),
        *_of("tensorrt", "fp32", "tf32", "fp16", "int8", product=BATCHES),
    )
}
RIVALS: Final = {
    "int8": ("int8", "fp16", "tf32", "fp32"),
    "fp16": ("fp16", "tf32", "fp32"),
    "fp32": ("tf32", "fp32"),
}
"""Precision of dlcc -> those of the peers that it is to be as fast as: the same and finer ones; and
TF32, which frameworks offer in place of float32 though it is coarser."""
