"""Where every byte of an artifact goes."""

from __future__ import annotations

from typing import Any

from dlcc.artifact.csource import MACOS_WEIGHTS_SECTION, WEIGHTS_SECTION
from dlcc.artifact.manifest import NAME, Artifact
from dlcc.errors import DlccError, ExitCode
from dlcc.objects import is_object, read_object

Row = tuple[str, str, int]
_Span = tuple[int, int, str]
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_AR_LONG_NAME = "#1/"


def account(artifact: Artifact) -> list[Row]:
    """All bytes of all files as (file, section, bytes); per file they sum to the file's size.

    Weights are listed per constant (packed ones per stream), libraries per section; "padding" is
    what alignment costs.

    Raises:
        DlccError: ARTIFACT if a file is missing or its structure cannot be read.
    """
    rows: list[Row] = []
    for name in sorted([*artifact.manifest["files"], NAME]):
        try:
            data = (artifact.folder / name).read_bytes()
            rows += [(name, section, size) for section, size in _sections(artifact, name, data)]
        except (OSError, ValueError) as error:
            raise DlccError(
                ExitCode.ARTIFACT,
                f"cannot account for {name}",
                where=str(artifact.folder),
                why=str(error),
                fix="compile the model again",
            ) from error
    return rows


def _sections(artifact: Artifact, name: str, data: bytes) -> list[tuple[str, int]]:
    if name.endswith(".weights"):
        spans = _weight_spans(artifact.manifest, 0, len(data))
    elif name.endswith((".so", ".dylib", ".o")):
        spans = _object_spans(artifact.manifest, data, 0)
    elif name.endswith(".a"):
        spans = _archive_spans(artifact.manifest, data)
    else:
        return [("text", len(data))]
    return _fill(spans, len(data))


def _fill(spans: list[_Span], total: int) -> list[tuple[str, int]]:
    """Adds the gaps between spans as one row "padding"; no byte may be counted twice."""
    rows: list[tuple[str, int]] = []
    at = padding = 0
    for start, size, label in sorted(span for span in spans if span[1] > 0):
        if start < at:
            raise ValueError(f"{label} overlaps what comes before it")
        padding += start - at
        rows.append((label, size))
        at = start + size
    if at > total:
        raise ValueError("a section ends behind the end of the file")
    padding += total - at
    return [*rows, ("padding", padding)] if padding else rows


def _weight_spans(manifest: dict[str, Any], start: int, size: int) -> list[_Span]:
    weights = manifest["weights"]
    header = weights["header_bytes"]
    if size < header:
        raise ValueError(f"{size} bytes are less than a weights header")
    spans = [(start, header, "header")]
    if weights["pack"] == "size":
        return spans + _stream_spans(weights, start + header)
    for entry in weights["entries"]:
        label = f"{entry['layer']}.{entry['name']}"
        spans.append((start + header + entry["offset"], entry["size"], label))
    return spans


def _stream_spans(weights: dict[str, Any], start: int) -> list[_Span]:
    """The streams of a packed file; a constant is in several of them."""
    spans, at = [(start, weights["table_bytes"], "stream table")], start + weights["table_bytes"]
    for stream in weights["streams"]:
        spans.append((at, stream["size"], f"stream {stream['kind']}"))
        at += stream["size"]
    return spans


def _object_spans(manifest: dict[str, Any], data: bytes, start: int) -> list[_Span]:
    file = read_object(data)
    spans = [(start + at, size, label) for label, at, size in file.tables()]
    for section in file.sections:
        if section.name in (WEIGHTS_SECTION, MACOS_WEIGHTS_SECTION):
            weights = _weight_spans(manifest, start + section.offset, section.size)
            spans += [(at, size, f"{section.name} {label}") for at, size, label in weights]
        else:
            spans.append((start + section.offset, section.file_bytes, section.name))
    return spans


def _archive_spans(manifest: dict[str, Any], data: bytes) -> list[_Span]:
    """The members of a static library: a 60-byte header each, even offsets.

    Those of macOS have their names behind the header, and an index with a name.
    """
    if not data.startswith(_AR_MAGIC):
        raise ValueError("not a static library")
    spans: list[_Span] = [(0, len(_AR_MAGIC), "archive header")]
    at = len(_AR_MAGIC)
    while at + _AR_HEADER <= len(data):
        header = data[at : at + _AR_HEADER]
        size = int(header[48:58])
        name = header[:16].decode("ascii", "replace").strip()
        content = at + _AR_HEADER
        end = content + size
        if not content <= end <= len(data):
            raise ValueError(f"a member of the library has {size} bytes")
        if name.startswith(_AR_LONG_NAME):
            content += int(name.removeprefix(_AR_LONG_NAME))
            if not at + _AR_HEADER <= content <= end:
                raise ValueError("a member's name is longer than the member")
            name = data[at + _AR_HEADER : content].rstrip(b"\0").decode("ascii", "replace")
        spans.append((at, content - at, "member header"))
        member = data[content:end]
        if is_object(member):
            spans += _object_spans(manifest, member, content)
        else:
            index = name == "/" or name.startswith("__.SYMDEF")
            spans.append((content, end - content, "symbol index" if index else "member names"))
        at = end + size % 2
    return spans
