"""manifest.json: what an artifact consists of, and the checks when it is opened again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import numpy as np

from dlcc import __version__
from dlcc.artifact.schema import fault
from dlcc.errors import DlccError, ExitCode
from dlcc.program import TensorInfo

NAME: Final = "manifest.json"
FORMAT: Final = "dlcc-artifact"
VERSION: Final = 3
ABI: Final = 2
"""Number of the C interface: ``runtime/c/api.h.in``."""


MOST_BYTES: Final = 1 << 26
"""Of a manifest: parsed JSON takes up to twenty times as much memory."""

REPORT_BYTES: Final = 1 << 28
"""The same of report.json, which tells what each kernel said about each layer."""


def profile_suffix(number: int) -> str:
    """What the name of a shape profile's own file has behind the network's."""
    return f"_shape_profile_{number}" if number else ""


def compiler_name() -> str:
    """``dlcc`` and its version."""
    return f"dlcc {__version__}"


def dump_json(value: object) -> bytes:
    """JSON with one fixed spelling, so that equal values are equal bytes."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True, default=_plain)
    return f"{text}\n".encode()


def _plain(value: object) -> object:
    """Scalars and arrays of numpy as plain values; statistics in a report are often such."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 over everything in the manifest but the checksum itself."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(dump_json(rest)).hexdigest()


def _checksum_of_any(manifest: dict[str, Any]) -> str:
    """The same for what somebody else wrote, "" where that cannot be written by this program."""
    try:
        return checksum(manifest)
    except (ValueError, RecursionError):  # half characters, depth
        return ""


def file_record(content: bytes) -> dict[str, object]:
    """Size and SHA-256 of one file, as the manifest lists them."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def open_regular(path: Path) -> BufferedReader:
    """Opens a file of an artifact for reading.

    Raises:
        OSError: as open does, and for what is no regular file: a pipe would wait for a writer, a
            device may never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_json(path: Path, most: int) -> Any:
    """The JSON value in a file of at most ``most`` bytes.

    Raises:
        OSError: as from :func:`open_regular`.
        ValueError: it is larger, nested too deep, or no JSON.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _refuse(folder: Path, what: str, why: str, fix: str = "compile the model again") -> DlccError:
    return DlccError(ExitCode.ARTIFACT, what, where=str(folder), why=why, fix=fix)


@dataclass(frozen=True)
class ShapeProfile:
    """One set of shapes that a network was compiled for.

    Attributes:
        inputs: the network's inputs, in the order run takes them.
        outputs: its outputs, in the order run fills them.
        arena_bytes: memory for intermediate values.
        variants: what the manifest tells of each variant (``features``, ``steps``), the best last.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    arena_bytes: int
    variants: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, record: dict[str, Any]) -> ShapeProfile:
        """The profile that ``record`` of a manifest tells of."""
        return cls(
            _tensors(record["inputs"]),
            _tensors(record["outputs"]),
            int(record["arena_bytes"]),
            {str(row["variant"]): row for row in (record, *record["better"])},
        )

    def __str__(self) -> str:
        return ", ".join(f"{t.name}{list(t.shape)}" for t in self.inputs) or "no inputs"


@dataclass(frozen=True)
class Artifact:
    """A compiled network on disk. ``manifest`` is manifest.json as Python values."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Artifact:
        """Reads and checks the manifest; :meth:`verify` checks the other files.

        Raises:
            DlccError: ARTIFACT, if it is missing, corrupt or of another version.
        """
        folder = Path(folder)
        path = folder / NAME
        try:
            manifest = read_json(path, MOST_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            why = f"there is no {NAME}" if folder.is_dir() else "there is no such folder"
            why = "it is a file" if folder.is_file() else why
            raise _refuse(
                folder, "not a dlcc artifact", why, "give the folder that dlcc compile -o made"
            ) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise _refuse(
                folder, f"cannot read {NAME}", reason, "check the path and its permissions"
            ) from None
        except ValueError as error:
            raise _refuse(folder, f"{NAME} is corrupt", f"it is not JSON: {error}") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise _refuse(folder, "not a dlcc artifact", f"{NAME} is of something else")
        if manifest.get("version") != VERSION:
            raise _refuse(
                folder,
                "the artifact has another format",
                f"its version is {manifest.get('version')}, this dlcc reads {VERSION}",
            )
        if manifest.get("checksum") != _checksum_of_any(manifest):
            raise _refuse(folder, f"{NAME} is corrupt", "its checksum does not fit its content")
        wrong = fault(manifest)
        if wrong:
            raise _refuse(folder, f"{NAME} is not one that dlcc writes", wrong)
        return cls(folder, manifest)

    @property
    def symbol(self) -> str:
        """The C name: prefix of files and functions."""
        return str(self.manifest["symbol"])

    @cached_property
    def shape_profiles(self) -> tuple[ShapeProfile, ...]:
        """The sets of shapes that the network was compiled for."""
        records = (self.manifest, *self.manifest["more_shapes"])
        return tuple(ShapeProfile.of(record) for record in records)

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs of the first shape profile."""
        return self.shape_profiles[0].inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs of the first shape profile."""
        return self.shape_profiles[0].outputs

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        """The variants of the first shape profile; the others have the same names and features."""
        return self.shape_profiles[0].variants

    def shape_profile(self, number: int) -> ShapeProfile:
        """The shape profile with that number, from 0.

        Raises:
            DlccError: USAGE, if there is none.
        """
        if 0 <= number < len(self.shape_profiles):
            return self.shape_profiles[number]
        listed = "; ".join(f"{i}: {p}" for i, p in enumerate(self.shape_profiles))
        raise DlccError(
            ExitCode.USAGE,
            f"there is no shape profile {number}",
            where=str(self.folder),
            why=f"the library holds {listed}",
            fix="name one of them",
        )

    def variant(self, name: str, profile: int = 0) -> dict[str, Any]:
        """What the manifest tells of the variant called ``name`` in a shape profile.

        Raises:
            DlccError: USAGE, if there is none.
        """
        if name in self.variants:
            return self.shape_profile(profile).variants[name]
        raise DlccError(
            ExitCode.USAGE,
            f"there is no variant {name!r}",
            where=str(self.folder),
            why=f"the library holds {', '.join(map(repr, self.variants))}",
            fix="leave the variant out to take the best that the CPU can run",
        )

    def path(self, suffix: str) -> Path | None:
        """The network's file with ``suffix`` (".so", ".a", ".o", ".h", ".weights"), if any."""
        for name in (f"{self.symbol}{suffix}", f"lib{self.symbol}{suffix}"):
            if name in self.manifest["files"]:
                return self.folder / name
        return None

    def report(self) -> dict[str, Any]:
        """What report.json holds; nobody has looked at its fields.

        Raises:
            DlccError: ARTIFACT, if it cannot be read.
        """
        try:
            report = read_json(self.folder / "report.json", REPORT_BYTES)
        except (OSError, ValueError) as error:
            raise self.bad_report(error) from None
        return report if isinstance(report, dict) else {}

    def bad_report(self, error: Exception) -> DlccError:
        """What to raise where report.json is not one that dlcc writes."""
        known = isinstance(error, OSError | ValueError)
        why = str(error) if known else f"{type(error).__name__}: {error}"
        return _refuse(self.folder, "cannot read report.json", why)

    def verify(self) -> None:
        """Compares size and SHA-256 of every listed file.

        Raises:
            DlccError: ARTIFACT, with the file and the numbers.
        """
        for name, record in sorted(self.manifest["files"].items()):
            try:
                with open_regular(self.folder / name) as file:
                    size, wanted = os.fstat(file.fileno()).st_size, record["size"]
                    same = size == wanted
                    digest = hashlib.file_digest(file, "sha256").hexdigest() if same else ""
            except FileNotFoundError:
                raise _refuse(self.folder, f"{name} is missing", f"{NAME} lists it") from None
            except OSError as error:
                reason = error.strerror or str(error)
                raise _refuse(
                    self.folder, f"cannot read {name}", reason, "check its permissions"
                ) from None
            if not same:
                why = f"it has {size} bytes, the manifest says {wanted}"
                what = "truncated" if size < wanted else "longer than it was"
                raise _refuse(self.folder, f"{name} is {what}", why)
            if digest != record["sha256"]:
                raise _refuse(
                    self.folder, f"{name} is corrupt", "its SHA-256 is not the manifest's"
                )


def _tensors(rows: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            r["name"], r["dtype"], tuple(r["shape"]), r.get("scale"), int(r.get("zero_point", 0))
        )
        for r in rows
    )
