"""inspect --verify: certificates computed again, and every kind of tampering."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcc.artifact import manifest as manifests
from dlcc.artifact.weights import content_hash
from dlcc.errors import ExitCode
from dlcc.frontends import load_graph
from dlcc.ir.text import save

ASSIGN = "canonicalize,fold-batch-norm,fuse-epilogues,assign-bitwidths{accumulator=16}"


@pytest.fixture
def artifact(dlcc: Any, cnn: Path, samples: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    done = dlcc(
        "compile", cnn, "--passes", ASSIGN, "--calib", samples, "--shape", "N=1", "-o", out,
        "--keep-ir", "-q",
    )  # fmt: skip
    assert done.code == 0, done.err
    return out


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest so that it is consistent again."""
    path = folder / "manifest.json"
    record = json.loads(path.read_text())
    change(record)
    for name in record["files"]:
        record["files"][name] = manifests.file_record((folder / name).read_bytes())
    record["checksum"] = manifests.checksum(record)
    path.write_bytes(manifests.dump_json(record))


def test_verified(dlcc: Any, artifact: Path, cnn: Path, samples: Path) -> None:
    done = dlcc("inspect", artifact, "--verify")
    assert done.code == 0, done.err
    assert "3 certificates computed again" in done.out
    assert "16 bits for weights" in done.out
    told = dlcc("inspect", artifact, "--verify", "--json").json()["certificates"]
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert [c["layer"] for c in told] == ["conv1", "conv2", "fc"]
    assert told == manifest["certificates"]
    assert all(c["assigned"]["high"] < 1 << 15 for c in told)
    source = ("--from", cnn, "--calib", samples, "--shape", "N=1")
    assert dlcc("inspect", artifact, "--verify", *source, "-q").code != 0  # inspect has no -q
    assert dlcc("inspect", artifact, "--verify", *source).code == 0


def test_a_graph_file(dlcc: Any, artifact: Path) -> None:
    kept = next(artifact.glob("*.dlir"))
    assert dlcc("inspect", artifact, "--verify", "--from", kept).code == 0


def widen(record: dict[str, Any]) -> None:
    record["certificates"][1]["high"] += 1


def narrow(record: dict[str, Any]) -> None:
    record["certificates"][0]["assigned"]["high"] -= 1


def drop(record: dict[str, Any]) -> None:
    del record["certificates"][2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (widen, "layer conv2"),
        (narrow, "what was said of an accumulator does not hold"),
        (drop, "no certificate for"),
    ],
)
def test_tampered_certificates(
    dlcc: Any, artifact: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    rewrite(artifact, change)
    done = dlcc("inspect", artifact, "--verify")
    assert done.code == ExitCode.VERIFICATION
    assert words in done.err


def test_tampered_weights(dlcc: Any, artifact: Path) -> None:
    kept = next(artifact.glob("*.dlir"))
    graph = load_graph(kept)
    node = next(n for n in graph.nodes if n.loc == "conv2")
    weight = node.input(1)
    codes = np.array(weight.constant.parts["values"])
    changed = np.where(codes > 0, codes - 1, codes)
    node.set_input(1, graph.add_stored({"values": changed}, weight.type, name=weight.name))
    save(graph, kept)
    damaged = dlcc("inspect", artifact, "--verify")
    assert damaged.code == ExitCode.ARTIFACT
    rewrite(artifact, lambda _record: None)
    done = dlcc("inspect", artifact, "--verify")
    assert done.code == ExitCode.VERIFICATION, done.err
    assert "conv2" in done.err


def test_another_network(dlcc: Any, artifact: Path, cnn: Path, labelled: Path) -> None:
    source = ("--from", cnn, "--calib", labelled, "--shape", "N=1")
    done = dlcc("inspect", artifact, "--verify", *source)
    assert done.code == ExitCode.VERIFICATION


def test_a_tampered_scale(dlcc: Any, artifact: Path) -> None:
    kept = next(artifact.glob("*.dlir"))
    text = kept.read_text()
    changed = text.replace('loc("fc")', 'loc("fc ")')
    assert changed != text
    kept.write_text(changed)
    rewrite(artifact, lambda record: record["certificates"][2].update(layer="fc "))
    done = dlcc("inspect", artifact, "--verify")
    assert done.code == ExitCode.VERIFICATION
    assert "not the one that was compiled" in done.err


def test_without_the_graph(dlcc: Any, cnn: Path, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = dlcc("compile", cnn, "--calib", samples, "--shape", "N=1", "-o", out, "-q")
    assert done.code == 0, done.err
    missing = dlcc("inspect", out, "--verify")
    assert missing.code == ExitCode.USAGE
    assert "--keep-ir" in missing.err
    source = ("--from", cnn, "--calib", samples, "--shape", "N=1")
    assert dlcc("inspect", out, "--verify", *source).code == 0
    rewrite(out, lambda record: record.pop("certificates"))
    old = dlcc("inspect", out, "--verify")
    assert old.code == ExitCode.ARTIFACT
    assert "has no certificates" in old.err


def test_float_networks_and_models(dlcc: Any, cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert dlcc("compile", cnn, "--bits", "32", "--shape", "N=1", "-o", out, "-q").code == 0
    done = dlcc("inspect", out, "--verify", "--from", cnn, "--shape", "N=1")
    assert "no integer layers" in done.out
    assert dlcc("inspect", cnn, "--verify").code == ExitCode.USAGE
    assert dlcc("inspect", out, "--from", cnn).code == ExitCode.USAGE


@pytest.mark.parametrize("options", [("--pack", "size"), ("--embed",)])
def test_packed_and_embedded_weights(
    dlcc: Any, cnn: Path, samples: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    rest = ("--calib", samples, "--shape", "N=1", "-o", out, "--keep-ir", "-q", *options)
    assert dlcc("compile", cnn, *rest).code == 0
    done = dlcc("inspect", out, "--verify")
    assert done.code == 0, done.err


@pytest.mark.parametrize("option", ["", "--embed"])
def test_weights_that_the_kernels_read(
    dlcc: Any, cnn: Path, samples: Path, tmp_path: Path, option: str
) -> None:
    out = tmp_path / "out"
    more = (option,) if option else ()
    rest = ("--calib", samples, "--shape", "N=1", "-o", out, "--keep-ir", "-q", *more)
    assert dlcc("compile", cnn, *rest).code == 0
    path = next(out.glob("*.so" if option else "*.weights"))
    image = bytearray(path.read_bytes())
    start = image.index(b"DLCCWTS\0\1\0\0\0")
    size = int.from_bytes(image[start + 24 : start + 32], "little")
    content = image[start + 64 : start + size]
    content[40] ^= 1
    image[start + 64 : start + size] = content
    image[start + 32 : start + 40] = content_hash(bytes(content)).to_bytes(8, "little")
    path.write_bytes(image)
    rewrite(out, lambda _record: None)
    done = dlcc("inspect", out, "--verify")
    assert done.code == ExitCode.VERIFICATION
    assert "weights of the artifact are not those of the graph" in done.err


def test_a_kernel_that_is_gone(dlcc: Any, artifact: Path) -> None:
    report = json.loads((artifact / "report.json").read_text())
    report["layers"][1]["kernel"] = "abacus"
    (artifact / "report.json").write_bytes(manifests.dump_json(report))
    rewrite(artifact, lambda _record: None)
    done = dlcc("inspect", artifact, "--verify")
    assert done.code == ExitCode.VERIFICATION
    assert "has no abacus for it" in done.err
