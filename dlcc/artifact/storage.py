"""What the manifest and the report tell of how the weights are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final, Literal, get_args

from dlcc.artifact.packed import Packed
from dlcc.artifact.weights import HEADER_BYTES
from dlcc.errors import DlccError, ExitCode
from dlcc.objects import read_object
from dlcc.program import Program

Pack = Literal["speed", "size"]
"""What the weights file is made for: to be mapped as it is, or to be small."""

PACKS: Final[tuple[Pack, ...]] = get_args(Pack)


def check_pack(pack: str) -> Pack:
    """``pack``, if it is a way to store weights.

    Raises:
        DlccError: USAGE.
    """
    for known in PACKS:
        if pack == known:
            return known
    raise DlccError(
        ExitCode.USAGE,
        f"cannot pack for {pack or 'nothing'}",
        where="--pack",
        fix=f"choose from {', '.join(PACKS)}",
    )


def weights_record(program: Program, packed: Packed | None, embedded: bool) -> dict[str, Any]:
    """The manifest's section ``weights``.

    Of a packed file every entry has ``form`` and ``stored``, and the streams are listed. With
    several variants every entry names those that read it, and there is what each takes; so it is
    with several shape profiles, by their numbers.
    """
    record: dict[str, Any] = {
        "embedded": embedded,
        "pack": "speed" if packed is None else "size",
        "header_bytes": HEADER_BYTES,
        "content_bytes": len(program.weights),
        "entries": [asdict(e) for e in sorted(program.weight_entries, key=lambda e: e.offset)],
    }
    if program.better:
        record["variants"] = variant_bytes(program)
        for entry in record["entries"]:
            readers = {p.variant for p in program.schedules if entry["offset"] in p.constants_read}
            entry["variants"] = [p.variant for p in program.variants if p.variant in readers]
    if program.more_shapes:
        record["shape_profiles"] = _taken(program, [p.variants for p in program.profiles])
        for entry in record["entries"]:
            entry["shape_profiles"] = [
                index
                for index, profile in enumerate(program.profiles)
                if any(entry["offset"] in p.constants_read for p in profile.variants)
            ]
    if packed is not None:
        for entry, form, share in zip(record["entries"], packed.forms, packed.shares, strict=True):
            entry |= {"form": form, "stored": share}
        record |= {"table_bytes": packed.table_bytes, "streams": packed.rows()}
    return record


def variant_bytes(program: Program) -> list[dict[str, Any]]:
    """What each variant takes, from the least to the best.

    ``read_bytes`` are of the constants that it reads, ``added_bytes`` of those among them that none
    before it reads, ``code_bytes`` of its kernels.
    """
    alike = [
        [p.variants[index] for p in program.profiles] for index in range(len(program.variants))
    ]
    rows = _taken(program, alike)
    for row, variant in zip(rows, program.variants, strict=True):
        row |= {"variant": variant.variant, "code_bytes": sum(kernel_bytes(variant).values())}
    return rows


def _taken(program: Program, groups: Iterable[Sequence[Program]]) -> list[dict[str, Any]]:
    """``read_bytes`` and ``added_bytes`` of groups of schedules, one after another."""
    sizes = {entry.offset: entry.size for entry in program.weight_entries}
    before: set[int] = set()
    rows: list[dict[str, Any]] = []
    for group in groups:
        read = frozenset[int]().union(*(schedule.constants_read for schedule in group))
        rows.append(
            {
                "read_bytes": sum(sizes.get(offset, 0) for offset in read),
                "added_bytes": sum(sizes.get(offset, 0) for offset in read - before),
            }
        )
        before |= read
    return rows


def kernel_bytes(program: Program) -> dict[str, int]:
    """Bytes of code of each function in the object of one variant."""
    if not program.object_code:
        return {}
    symbols = read_object(program.object_code).symbols()
    return {s.name: s.size for s in symbols if s.is_function and s.section}


def storage_report(
    program: Program, pack: Pack, image: bytes, packed: Packed | None
) -> dict[str, Any]:
    """The report's section ``storage``: bytes of the weights file, and each layer's among them.

    ``bytes`` of the layers and ``other_bytes`` (header, table, padding) sum to ``file_bytes``. Of a
    packed file ``forms`` tells how each constant of a layer is stored.
    """
    entries = sorted(program.weight_entries, key=lambda e: e.offset)
    sizes = [e.size for e in entries] if packed is None else list(packed.shares)
    layers: Counter[str] = Counter()
    forms: dict[str, dict[str, str]] = {}
    for index, (entry, size) in enumerate(zip(entries, sizes, strict=True)):
        layers[entry.layer] += size
        if packed is not None:
            forms.setdefault(entry.layer, {})[entry.name] = packed.forms[index]
    return {
        "pack": pack,
        "file_bytes": len(image),
        "other_bytes": len(image) - sum(sizes),
        "memory_bytes": len(program.weights),
        "layers": [
            {"layer": layer, "bytes": size, **({"forms": forms[layer]} if packed else {})}
            for layer, size in layers.items()
        ],
        **({} if packed is None else {"streams": packed.rows()}),
    }
