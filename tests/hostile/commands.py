"""Odd command lines: every option of every verb with values that no one means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from typer.main import get_command

from dlcc.cli.app import app

TEXTS = (
    "", " ", "-", "--", "*", "=", "=1", "N=", "N=0", "N=-1", "N=1,", "N=1x2", f"N={2**63}", "M=1",
    "N=nan", "x=1x3x8x8", "x=0x3x8x8", "x=1x3x8", "x=axb", "N=1,2,3,4,5,6,7,8,9", "true", "None",
    "%s%n", "$(touch x)", ";", "a|b", "{", "a{b=c", "quantize{bits=99}", "quantize{", ",,", "a,b",
    "cpu:avx2+", "cpu:", "+", "arm:none", "cuda:sm_0", "all", "\n", "\t", "\x1b[31m", "\ufb01",
    "\u202e\U0001f600", "\udcff", "a" * 300, "b/" * 2000, "9" * 400,
)  # fmt: skip
NUMBERS = (
    "-1", "0", "1", "-0", "1.5", "1e9", "0x10", "1_000", "nan", "inf", "-inf", str(2**31),
    str(2**63), str(-(2**63)), "9" * 30, "1G", "1T", "-1G", "4GG", "G",
)  # fmt: skip
PLACES = (
    ".", "..", "/proc", "/dev/null", "/dev/zero", "/dev/full", "/proc/none", "/proc/self/mem",
    "pipe", "folder", "full", "loop", "missing", "missing/x", "cnn.onnx", "cnn.onnx/below", "empty",
    "text", "artifact", "artifact/manifest.json", "samples.npz", "graph.dlir", "missing.onnx",
    "missing.dlir", "missing.npz", "x.svg", "~", "a" * 300 + ".onnx", "b/" * 2500,
)  # fmt: skip

BASES: Mapping[str, Sequence[str]] = {
    "compile": ("cnn.onnx", "-o", "out"),
    "opt": ("cnn.onnx", "-o", "out.dlir", "--passes", "canonicalize"),
    "export": ("cnn.onnx", "out.onnx"),
    "run": ("artifact", "-i", "samples.npz", "-o", "out.npz"),
    "eval": ("artifact", "--data", "labelled.npz"),
    "compare": ("cnn.onnx", "artifact", "-i", "samples.npz"),
    "bench": ("artifact", "--rounds", "1"),
    "tune": ("cnn.onnx", "-d", "times.json", "--rounds", "1", "--candidates", "2"),
    "sensitivity": (
        *("cnn.onnx", "--data", "samples.npz", "--sparsities", "0.5"),
        *("--samples", "2", "--only", "fc"),
    ),
    "inspect": ("artifact",),
    "passes": (),
    "targets": (),
}
"""By verb a command line that works in the folder of :func:`tests.hostile.test_commands.room`."""

_LONG = {
    ("bench", "--rounds"), ("tune", "--rounds"), ("compile", "--verify-numerics"),
    ("opt", "--verify-numerics"), ("tune", "--candidates"), ("bench", "--limits"),
    ("inspect", "--limits"), ("inspect", "--profile"), ("bench", "--layers"),
}  # fmt: skip
"""What works for as long as it is told, or measures the machine: left out."""


def lines(seed: int) -> Iterator[list[str]]:
    """Endlessly many command lines; each is one that works with one or two things changed."""
    rng = Random(seed)
    known = {verb: options(verb) for verb in BASES}
    while True:
        verb = rng.choice(list(BASES))
        words = list(BASES[verb])
        for _ in range(rng.choice((1, 1, 2))):
            kind = rng.random()
            if kind < 0.35 and words:
                places = [k for k, word in enumerate(words) if _may_change(verb, words, k)]
                words[rng.choice(places)] = _value(rng)
            elif kind < 0.9 and known[verb]:
                option = rng.choice(known[verb])
                words += [option] if rng.random() < 0.15 else [option, _value(rng)]
            elif kind < 0.95 and words:
                del words[rng.randrange(len(words))]
            else:
                words.insert(rng.randrange(len(words) + 1), _value(rng))
        if not any((verb, word.split("=")[0]) in _LONG for word in words[len(BASES[verb]) :]):
            yield [verb, *words]


def options(verb: str) -> list[str]:
    """The options of a verb, flags included, in their long spelling."""
    command: Any = get_command(app)
    found = (max(p.opts, key=len) for p in command.commands[verb].params)
    return [o for o in found if o.startswith("--") and (verb, o) not in _LONG]


def _may_change(verb: str, words: list[str], place: int) -> bool:
    """Whether the word is no option, and no value that stands for a time."""
    before = words[place - 1] if place else ""
    return not words[place].startswith("-") and (verb, before) not in _LONG


def _value(rng: Random) -> str:
    return rng.choice(rng.choice((TEXTS, NUMBERS, PLACES, PLACES)))


__all__ = ["BASES", "lines", "options"]
