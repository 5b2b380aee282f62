"""manifest.json: what an artifact consists of, and the checks when it is opened again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
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


def file_record(content: bytes) -> dict[str, object]:
    """Size and SHA-256 of one file, as the manifest lists them."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


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
            text = path.read_bytes()
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
        try:
            manifest = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _refuse(folder, f"{NAME} is corrupt", f"it is not JSON: {error}") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise _refuse(folder, "not a dlcc artifact", f"{NAME} is of something else")
        if manifest.get("version") != VERSION:
            raise _refuse(
                folder,
                "the artifact has another format",
                f"its version is {manifest.get('version')}, this dlcc reads {VERSION}",
            )
        if manifest.get("checksum") != checksum(manifest):
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

    def verify(self) -> None:
        """Compares size and SHA-256 of every listed file.

        Raises:
            DlccError: ARTIFACT, with the file and the numbers.
        """
        for name, record in sorted(self.manifest["files"].items()):
            try:
                with (self.folder / name).open("rb") as file:
                    size = file.seek(0, 2)
                    file.seek(0)
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                raise _refuse(self.folder, f"{name} is missing", f"{NAME} lists it") from None
            except OSError as error:
                reason = error.strerror or str(error)
                raise _refuse(
                    self.folder, f"cannot read {name}", reason, "check its permissions"
                ) from None
            if size != record["size"]:
                why = f"it has {size} bytes, the manifest says {record['size']}"
                what = "truncated" if size < record["size"] else "longer than it was"
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
