"""Feeds mutated input to the importer and to the artifact loader; only DlccError may come out.

``python -m tests.fuzz.hostile [--count N] [--seed S]`` tells the rate and every crash.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx

import dlcc
from dlcc.artifact import Artifact
from dlcc.artifact.manifest import NAME, checksum, dump_json
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.onnx import import_onnx
from dlcc.frontends.onnx_model import read_model
from tests.fuzz.graphs import random_model
from tests.fuzz.mutations import mutated_bytes, mutated_json, mutated_model

_PER_MODEL = 16
"""Mutations of one model before the next is drawn."""


@lru_cache(2)
def _model(seed: int) -> onnx.ModelProto:
    return random_model(seed).model


def importer_fails(seed: int, folder: Path) -> str:
    """Import the model that ``seed`` mutates: "accepted", "refused", or the crash's traceback."""
    rng = np.random.default_rng(seed)
    model = _model(seed // _PER_MODEL)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            if seed % 2:
                path = folder / "mutated.onnx"
                path.write_bytes(mutated_bytes(rng, model.SerializeToString()))
                import_onnx(read_model(path))
            else:
                import_onnx(mutated_model(rng, model))
    except DlccError as error:
        return "refused" if error.code != ExitCode.INTERNAL else traceback.format_exc()
    except Exception:
        return traceback.format_exc()
    return "accepted"


def make_artifact(folder: Path) -> Path:
    """A small artifact to mutate: weights in a file, two inputs, codes inside."""
    node = onnx.helper.make_node
    f32 = onnx.TensorProto.FLOAT
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["y"])],
        "small",
        [info("x", f32, [1, 4]), info("b", f32, [1, 3])],
        [info("y", f32, [1, 3])],
        [onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    dlcc.compile(import_onnx(model), folder, bits=32, sample="none")
    return folder


def loader_fails(seed: int, good: Path, bad: Path) -> str:
    """Open a mutation of the artifact ``good`` in ``bad``, its library left unread by the linker.

    Every fourth has bytes of any file changed. The others have a field of the manifest changed and
    the checksum made to fit, as someone would who means it.
    """
    rng = np.random.default_rng(seed)
    names = sorted(p.name for p in good.iterdir() if p.is_file())
    name = names[int(rng.integers(len(names)))] if seed % 4 == 0 else NAME
    old = (good / name).read_bytes()
    if seed % 4 == 0:
        new = mutated_bytes(rng, old)
    else:
        manifest = mutated_json(rng, json.loads(old))
        manifest["checksum"] = checksum(manifest)
        new = dump_json(manifest)
    (bad / name).write_bytes(new)
    try:
        artifact = Artifact.open(bad)
        artifact.verify()
        assert all(t.elements >= 0 for t in (*artifact.inputs, *artifact.outputs))
        assert artifact.variants
        assert artifact.symbol
        artifact.path(".so")
    except DlccError as error:
        return "refused" if error.code == ExitCode.ARTIFACT else traceback.format_exc()
    except Exception:
        return traceback.format_exc()
    finally:
        (bad / name).write_bytes(old)
    return "accepted"


def run(count: int, seed: int = 0) -> tuple[Counter[str], dict[str, str]]:
    """``count`` mutations, one in eight of an artifact; what became of them, and the crashes."""
    told: Counter[str] = Counter()
    crashes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        good = make_artifact(Path(scratch) / "good")
        bad = Path(shutil.copytree(good, Path(scratch) / "bad"))
        for number in range(seed, seed + count):
            loader = number % 8 == 7
            if loader:
                result = loader_fails(number // 8, good, bad)
            else:
                result = importer_fails(number, Path(scratch))
            if result not in ("accepted", "refused"):
                crashes[f"--seed {number} --count 1"] = result
                result = "crashed"
            told[f"{'loader' if loader else 'importer'} {result}"] += 1
    return told, crashes


def main() -> int:
    """Run mutations and print each kind of crash once."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.hostile")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start = time.perf_counter()
    told, crashes = run(given.count, given.seed)
    seconds = time.perf_counter() - start
    kinds: dict[str, list[str]] = {}
    for arguments, text in crashes.items():
        place = [line for line in text.splitlines() if line.startswith("  File")][-1]
        kinds.setdefault(place, []).append(arguments)
    for arguments in kinds.values():
        print(f"{crashes[arguments[0]]}    {arguments[0]} (and {len(arguments) - 1} more)\n")
    print(f"{dict(told)}, {given.count / seconds:.0f} per second, {len(crashes)} crashes")
    return int(bool(crashes))


if __name__ == "__main__":
    sys.exit(main())
