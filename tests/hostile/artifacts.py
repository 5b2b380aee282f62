"""Altered artifacts: damage, and manifests that somebody changed and sealed again.

A library of somebody else's can do anything once it is loaded, and who changes one can write its
hash anew. So sealed libraries are here only where no loader runs them: text, other machines.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from dlcc.artifact.manifest import NAME, checksum, dump_json, file_record, read_json

REPORT = "report.json"

WRONG: tuple[Any, ...] = (
    None, True, "", "x" * 5000, "..", "../../etc/passwd", "/etc/passwd", "a\0b", "%n%s", -1, 0,
    1.5, 2**31, 2**63 - 1, 2**64, 10**400, float("nan"), float("inf"), [], {}, [[]], [None],
    {"": None},
)  # fmt: skip
"""What fields are replaced by."""


@dataclass(frozen=True)
class Alteration:
    """Something that was done to an artifact.

    Attributes:
        name: what, and to which file or field.
        apply: does it to the artifact in a folder; may replace the folder itself.
        refused: it must not load. Where False, it may, and has to be right then.
    """

    name: str
    apply: Callable[[Path], None]
    refused: bool = True


def alterations(good: Path, outside: Path) -> list[Alteration]:
    """All alterations of the artifact in ``good``.

    Args:
        good: an artifact with a shared library, weights in a file and a kept graph.
        outside: a folder for what links lead to.
    """
    manifest = read_json(good / NAME, 1 << 26)
    found = [*_folders(), *_documents(manifest), *_sealed(good, manifest)]
    for name in sorted([NAME, *manifest["files"]]):
        found += _damages(name, good, outside)
    found += _fields(manifest)
    found += _report_fields(read_json(good / REPORT, 1 << 26))
    return found


# -- the folder ------------------------------------------------------------------------------------


def _folders() -> Iterator[Alteration]:
    yield Alteration("folder/missing", _remove_tree)
    yield Alteration("folder/empty", lambda folder: _emptied(folder))
    for suffix, first in (
        (".zip", b"PK\x03\x04"),
        (".tar", b"x\0"),
        (".gz", b"\x1f\x8b"),
        ("", b""),
    ):
        contents = first + bytes(600)
        yield Alteration(f"folder/file{suffix}", partial(_file_instead, contents=contents))
    yield Alteration("folder/pipe", lambda folder: (_remove_tree(folder), os.mkfifo(folder))[0])
    yield Alteration("folder/link", _moved_behind_link, refused=False)


def _emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _remove_tree(folder: Path) -> None:
    _emptied(folder)
    folder.rmdir()


def _file_instead(folder: Path, contents: bytes) -> None:
    _remove_tree(folder)
    folder.write_bytes(contents)


def _moved_behind_link(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.symlink_to("moved")


# -- files -----------------------------------------------------------------------------------------


def _damages(name: str, good: Path, outside: Path) -> Iterator[Alteration]:
    """What happens to one file, the manifest included, with nothing said about it."""
    data = (good / name).read_bytes()
    rng = Random(name)
    contents = {
        "empty": b"", "cut": data[:-2], "half": data[: len(data) // 2], "longer": data + b"\0",
        "twice": data * 2, "other": rng.randbytes(len(data)),
    }  # fmt: skip
    for bit in range(3):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        contents[f"bit-{bit}"] = bytes(changed)
    for what, new in contents.items():
        yield Alteration(f"{name}/{what}", partial(_write, name=name, data=new))

    def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            (folder / name).unlink()
            make(folder / name)

        return apply

    twin = outside / name
    twin.write_bytes(data)
    yield Alteration(f"{name}/missing", instead(lambda path: None))
    yield Alteration(f"{name}/folder", instead(Path.mkdir))
    yield Alteration(f"{name}/pipe", instead(os.mkfifo))
    yield Alteration(f"{name}/loop", instead(lambda path: path.symlink_to(path.name)))
    yield Alteration(f"{name}/nowhere", instead(lambda path: path.symlink_to("nowhere")))
    for device in ("/dev/zero", "/dev/tty", "/proc/self/mem"):
        link = instead(partial(Path.symlink_to, target=device))
        yield Alteration(f"{name}/link-to-{Path(device).name}", link)
    same = instead(lambda path: path.symlink_to(twin))
    yield Alteration(f"{name}/link-to-the-same", same, refused=False)
    yield Alteration(f"{name}/hole", partial(_stretched, name=name, size=1 << 41))


def _write(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


def _stretched(folder: Path, name: str, size: int) -> None:
    os.truncate(folder / name, size)  # takes no room on the disk


# -- what is sealed again --------------------------------------------------------------------------


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest whose checksum fits."""
    return dump_json({**manifest, "checksum": checksum(manifest)})


def _replaced(folder: Path, manifest: dict[str, Any], name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    files = {**manifest["files"], name: file_record(data)}
    (folder / NAME).write_bytes(sealed({**manifest, "files": files}))


def _sealed(good: Path, manifest: dict[str, Any]) -> Iterator[Alteration]:
    (library,) = (name for name in manifest["files"] if name.endswith(".so"))
    data = (good / library).read_bytes()
    for what, new in {
        "empty": b"",
        "text": b"#!/bin/sh\necho hello\n",
        "linker-script": b"INPUT(/lib/libm.so)\n",
        "class-32": data[:4] + b"\1" + data[5:],
        "big-endian": data[:5] + b"\2" + data[6:],
        "machine-aarch64": data[:18] + struct.pack("<H", 183) + data[20:],
        "machine-none": data[:18] + struct.pack("<H", 0) + data[20:],
        "executable": data[:16] + struct.pack("<H", 1) + data[18:],
        "header-only": data[:64],
        "macho": b"\xcf\xfa\xed\xfe" + data[4:],
    }.items():
        change = partial(_replaced, manifest=manifest, name=library, data=new)
        yield Alteration(f"sealed/library-{what}", change)
    (weights,) = (name for name in manifest["files"] if name.endswith(".weights"))
    data = (good / weights).read_bytes()
    for what, new in {
        "empty": b"", "cut": data[:-1], "longer": data + b"\0", "zeros": bytes(len(data)),
        "text": b"weights", "header": data[:32], "bit": data[:-70] + b"\x55" + data[-69:],
    }.items():  # fmt: skip
        change = partial(_replaced, manifest=manifest, name=weights, data=new)
        yield Alteration(f"sealed/weights-{what}", change)
    for name in sorted(manifest["files"]):
        rest = {k: v for k, v in manifest["files"].items() if k != name}
        text = sealed({**manifest, "files": rest})
        change = partial(_write, name=NAME, data=text)
        yield Alteration(f"sealed/{name}-not-listed", change, refused=False)
    record = manifest["files"][weights]
    for place in (
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "a\0b",
        "",
        ".",
        "..",
        "x" * 300,
        "nowhere",
    ):
        text = sealed({**manifest, "files": {**manifest["files"], place: record}})
        yield Alteration(f"sealed/file-{place[:12]!r}", partial(_write, name=NAME, data=text))


# -- the manifest as text --------------------------------------------------------------------------


def _documents(manifest: dict[str, Any]) -> Iterator[Alteration]:
    again, deep = sealed(manifest), b"[" * 800 + b"]" * 800
    for what, text in {
        "deep-lists": b"[" * 200_000,
        "deep-closed": b"[" * 5000 + b"]" * 5000,
        "deep-objects": b'{"a":' * 100_000,
        "deep-field": again.replace(b'"name"', b'"z":' + deep + b',"name"'),
        "long-number": b'{"format": ' + b"9" * 100_000 + b"}",
        "spaces": b" " * (1 << 20),
        "null": b"null", "number": b"3", "text": b'"dlcc-artifact"', "nan": b"NaN",
        "mark": b"\xef\xbb\xbf" + again,
        "latin": b'{"format": "\xe9"}',
        "half-character": again.replace(b'"name"', b'"z": "\\ud800", "name"'),
        "key-twice": again.replace(b'"name"', b'"version": 1, "name"'),
        "comments": b"// a manifest\n" + again,
    }.items():  # fmt: skip
        refused = what not in ("mark", "key-twice")  # JSON that says the same
        yield Alteration(f"document/{what}", partial(_write, name=NAME, data=text), refused)
    for version in (None, 0, 1, 2, 4, -1, "3", 3.5, [3], 10**30):
        text = sealed({**manifest, "version": version})
        yield Alteration(f"document/version-{version}", partial(_write, name=NAME, data=text))
    for kind in (None, "", "dlcc", "DLCC-ARTIFACT", 3, ["dlcc-artifact"]):
        text = sealed({**manifest, "format": kind})
        yield Alteration(f"document/format-{kind}", partial(_write, name=NAME, data=text))


# -- fields ----------------------------------------------------------------------------------------


def _fields(manifest: dict[str, Any]) -> Iterator[Alteration]:
    """Every field of the manifest removed, or replaced by each of ``WRONG``, and sealed."""
    kept = {k: v for k, v in manifest.items() if k not in ("checksum", "format", "version")}
    for place, twin in _changed(kept):
        text = sealed({**{k: manifest[k] for k in ("format", "version")}, **twin})
        yield Alteration(f"field/{place}", partial(_write, name=NAME, data=text), refused=False)


def _report_fields(report: dict[str, Any]) -> Iterator[Alteration]:
    for place, twin in _changed(report):
        yield Alteration(f"report/{place}", partial(_rewritten_report, report=twin), refused=False)


def _rewritten_report(folder: Path, report: Any) -> None:
    _replaced(folder, read_json(folder / NAME, 1 << 26), REPORT, dump_json(report))


def _changed(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for path in _paths(document):
        name = ".".join(map(str, path))
        yield f"{name}-gone", _with(document, path)
        for index, value in enumerate(WRONG):
            yield f"{name}-{index}", _with(document, path, value)


def _paths(value: Any, most: int = 2) -> Iterator[tuple[Any, ...]]:
    """Places of values: all keys, and of lists the first elements."""
    keys = list(value) if isinstance(value, dict) else list(range(min(len(value), most)))
    for key in keys:
        yield (key,)
        if isinstance(value[key], dict | list):
            yield from ((key, *rest) for rest in _paths(value[key], most))


def _with(value: Any, path: tuple[Any, ...], *new: Any) -> Any:
    """A copy of ``value`` with another value, or none, at ``path``."""
    twin = value.copy()
    key, *rest = path
    if rest:
        twin[key] = _with(value[key], tuple(rest), *new)
    elif new:
        twin[key] = new[0]
    else:
        del twin[key]
    return twin


__all__ = ["Alteration", "alterations"]
