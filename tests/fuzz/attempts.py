"""One mutation each: what is read, and at which stage it was refused, if it was.

A mutation is known by its number alone. What reads it may raise :class:`DlccError` with a message
to act on; everything else is a fault and told as :class:`Fault`.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import onnx

import dlcc
from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify, verify_file
from dlcc.artifact import Artifact, account
from dlcc.artifact.manifest import NAME, checksum, dump_json, file_record
from dlcc.errors import DlccError, ExitCode
from dlcc.executable import random_feed
from dlcc.frontends.onnx import import_onnx
from dlcc.frontends.onnx_model import parse_model
from dlcc.inspection import inspect_artifact
from dlcc.ir import Graph
from dlcc.ir.encodings import Array
from dlcc.ir.text import parse_graph
from dlcc.objects import ObjectError, read_object
from dlcc.program import TensorInfo
from tests.fuzz.mutations import mutated_bytes, mutated_json, mutated_model, mutated_text
from tests.fuzz.seeds import Corpus

MOST_NUMBERS = 1 << 18
"""Of a graph that is executed: the reference computes some ops one number at a time."""

EXECUTED = 3
"""One in so many accepted graphs is executed by the reference."""

CODES = {ExitCode.INPUT_FILE, ExitCode.MODEL, ExitCode.UNSUPPORTED, ExitCode.LIMIT}

_STAGES = {
    "parse_model": "file", "opsets": "opset", "_inlined": "functions", "__init__": "border",
    "add_inputs": "border", "ordered": "names", "body": "names", "node": "node",
    "_unsupported": "node", "check_factors": "outputs", "output": "outputs", "_tensor": "outputs",
    "run": "node", "_recognised": "idioms",
}  # fmt: skip
"""Where the importer refuses, by the innermost of its functions."""


class Fault(Exception):
    """A mutation was read in a way that it must not be."""


def importer(number: int, corpus: Corpus) -> str:
    """Import a mutated model, one in four with its bytes changed; the stage that was reached."""
    try:
        graph = import_onnx(mutant(number, corpus))
    except DlccError as error:
        _check(error, CODES)
        return f"importer: refused, {_stage(error)}"
    return f"importer: {_accepted(number, graph)}"


def mutant(number: int, corpus: Corpus) -> onnx.ModelProto:
    """The model of mutation ``number``.

    Raises:
        DlccError: its bytes are no model.
    """
    rng = Random(number)
    seed = rng.choice(corpus.models)
    if rng.random() < 0.25:
        return parse_model(mutated_bytes(rng, seed.contents), Path("mutated.onnx"))
    return mutated_model(rng, seed, corpus.pool)


def text(number: int, corpus: Corpus) -> str:
    """Read a graph from mutated text."""
    rng = Random(number)
    words, sidecar = rng.choice(corpus.texts)
    try:
        graph = parse_graph(mutated_text(rng, words), sidecar, "mutated.dlir")
    except DlccError as error:
        _check(error, CODES)
        return "text: refused, grammar"
    try:
        verify_file(graph, "mutated.dlir")
    except DlccError as error:
        _check(error, CODES)
        return "text: refused, types"
    try:
        return f"text: {_accepted(number, graph)}"
    except DlccError as error:  # encodings that an op has no integer definition for
        _check(error, {ExitCode.MODEL})
        return "text: refused, when executed"


def _accepted(number: int, graph: Graph) -> str:
    """What is right of every graph that was accepted; some are executed."""
    verify(graph)
    if number % EXECUTED:
        return "accepted"
    if sum(v.type.elements for v in graph.values()) > MOST_NUMBERS:
        return "accepted, too large to execute"
    results = execute(graph, feed_of(graph, number))
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        found = results[name]
        if found.shape != value.type.shape or found.dtype != value.type.storage.numpy:
            raise Fault(f"{name!r} is {found.dtype}{found.shape}, its type is {value.type}")
    return "accepted, executed"


def feed_of(graph: Graph, number: int) -> dict[str, Array]:
    """Random inputs of a graph."""
    inputs = [TensorInfo(v.name, str(v.type.storage.numpy), v.type.shape) for v in graph.inputs]
    return random_feed(tuple(inputs), number)


def manifest(number: int, corpus: Corpus) -> str:
    """Change fields of a manifest and make its checksum fit, as someone would who means it."""
    rng = Random(number)
    place = rng.randrange(len(corpus.good))
    good, bad = corpus.good[place], corpus.bad[place]
    changed = mutated_json(rng, corpus.manifest(good))
    with _replaced(corpus, place, NAME, _sealed(changed)):
        return f"manifest: {_loaded(bad, number)}"


def damage(number: int, corpus: Corpus) -> str:
    """Change bytes of any file: that has to be seen."""
    rng = Random(number)
    place = rng.randrange(len(corpus.good))
    good, bad = corpus.good[place], corpus.bad[place]
    name = rng.choice(sorted(corpus.files[good]))
    old = corpus.files[good][name]
    new = mutated_bytes(rng, old)
    with _replaced(corpus, place, name, new):
        told = _loaded(bad, number)
    if told != "refused" and new != old and name != NAME:
        raise Fault(f"{name} was changed and nobody noticed")
    return f"damage: {told}"


def sealed(number: int, corpus: Corpus) -> str:
    """Change bytes of a file and make its hash in the manifest fit.

    A library that is not dlcc's can do anything when it is loaded, so it is only read, as
    ``dlcc inspect`` does; with other files the network is loaded and run.
    """
    rng = Random(number)
    place = rng.randrange(len(corpus.good))
    good, bad = corpus.good[place], corpus.bad[place]
    name = rng.choice([n for n in sorted(corpus.files[good]) if n != NAME])
    new = mutated_bytes(rng, corpus.files[good][name])
    whole = dict(corpus.manifest(good))
    whole["files"] = {**whole["files"], name: file_record(new)}
    with _replaced(corpus, place, name, new), _replaced(corpus, place, NAME, _sealed(whole)):
        told = _inspected(bad)
        if not name.endswith(".so"):
            told = _loaded(bad, number)
    return f"sealed: {told}"


def objects(number: int, corpus: Corpus) -> str:
    """Read all there is to read of a mutated object file."""
    rng = Random(number)
    files = rng.choice(list(corpus.files.values()))
    name = rng.choice([n for n in sorted(files) if n.endswith((".so", ".o"))])
    try:
        found = read_object(_header_changed(rng, files[name]))
        found.tables()
        found.needed()
        found.symbols()
        found.symbols(11)
        found.relocated()
    except ObjectError:
        return "objects: refused"
    return "objects: accepted"


def _header_changed(rng: Random, data: bytes) -> bytes:
    """``data`` with changes where an object file's structure lies: at its two ends."""
    head, tail = min(len(data), 512), min(len(data), 4096)
    if rng.random() < 0.5:
        return mutated_bytes(rng, data[:head]) + data[head:]
    return data[:-tail] + mutated_bytes(rng, data[-tail:])


_Attempt = Callable[[int, Corpus], str]
_MIX: tuple[_Attempt, ...] = (
    *[importer] * 12, text, text, manifest, damage,
)  # fmt: skip


def family(number: int) -> _Attempt:
    """What is done with the mutation of this number."""
    if number % 16 == 15 and number // 16 % 3:
        return (sealed, objects)[number // 16 % 3 - 1]
    return _MIX[number % 16]


def attempt(number: int, corpus: Corpus) -> tuple[str, str]:
    """The stage that mutation ``number`` reached, and the fault's text, "" if it was none."""
    what = family(number)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return what(number, corpus), ""
    except Exception:
        return f"{what.__name__}: fault", traceback.format_exc()


def _check(error: DlccError, codes: set[ExitCode]) -> None:
    if error.code not in codes or not error.what or not (error.why or error.fix):
        raise Fault(f"no message to act on: {error.code!r} {error}") from error


def _stage(error: DlccError) -> str:
    stage, frame = "elsewhere", error.__traceback__
    while frame is not None:
        stage = _STAGES.get(frame.tb_frame.f_code.co_name, stage)
        frame = frame.tb_next
    return stage


def _sealed(whole: dict[str, object]) -> bytes:
    return dump_json({**whole, "checksum": checksum(whole)})


@contextmanager
def _replaced(corpus: Corpus, place: int, name: str, contents: bytes) -> Iterator[None]:
    path = corpus.bad[place] / name
    path.write_bytes(contents)
    try:
        yield
    finally:
        path.write_bytes(corpus.files[corpus.good[place]][name])


def _inspected(folder: Path) -> str:
    try:
        inspect_artifact(folder)
    except DlccError as error:
        _check(error, {ExitCode.ARTIFACT})
        return "refused by inspect"
    return "accepted"


def _loaded(folder: Path, number: int) -> str:
    """Open, account for and run the artifact as the loader does."""
    try:
        account(Artifact.open(folder))
        model = dlcc.load(folder, threads=1)
    except DlccError as error:
        _check(error, {ExitCode.ARTIFACT})
        return "refused"
    with model:
        feed = random_feed(model.inputs, number)
        model.run(feed)
        model.profile(*feed.values())
    return "accepted, run"


__all__ = ["MOST_NUMBERS", "Fault", "attempt", "family", "feed_of", "importer", "mutant"]
