"""What manifest.json has to hold for an artifact to be opened: names, types and ranges.

The checksum tells damage, not intent: who changes a field can compute it anew. So nothing of the
manifest is used before its type is known, and no name in it leaves the artifact's folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

Check = Callable[[Any], bool]

_DTYPES: Final = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "bool": 1,
    **{f"{sign}int{8 * size}": size for sign in ("", "u") for size in (1, 2, 4, 8)},
    **dict.fromkeys(("int2", "int4", "uint2", "uint4", "float4_e2m1fn"), 1),
    **{f"float8_{k}": 1 for k in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")},
}  # fmt: skip
"""Types of the border, and the bytes of an element."""

_MOST = 2**63 - 1


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _identifier(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w{0,254}", value, re.A) is not None


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def _count(value: Any) -> bool:
    return _size(value) and value > 0


def _hex(digits: int) -> Check:
    return lambda value: (
        isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value) is not None
    )


def _listing(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _record(**fields: Check) -> Check:
    return lambda value: (
        isinstance(value, dict)
        and all(k in value and check(value[k]) for k, check in fields.items())
    )


def _files(value: Any) -> bool:
    """Plain names of files in the folder itself, with their sizes and hashes."""
    record = _record(size=_size, sha256=_hex(64))
    return isinstance(value, dict) and all(
        not re.search(r"[/\\\0]", name) and name not in ("", ".", "..") and record(row)
        for name, row in value.items()
    )


def _tensor(value: Any) -> bool:
    fields = _record(name=_text, dtype=_DTYPES.__contains__, shape=_listing(_size))
    if not isinstance(value, dict) or not _text(value.get("dtype")) or not fields(value):
        return False
    elements = math.prod(value["shape"]) * _DTYPES[value["dtype"]]
    zero, scale = value.get("zero_point", 0), value.get("scale")
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    return (
        value.get("bytes", elements) == elements <= _MOST
        and (_size(zero) or _size(-zero if isinstance(zero, int) else None))
        and (scale is None or (number and 0 < scale < math.inf))
    )


def _one_of(*values: str) -> Check:
    return lambda value: isinstance(value, str) and value in values


def _weights(value: Any) -> bool:
    """The section ``weights``, and what packed files and several variants have beside."""
    if not _weights_fields(value):
        return False
    packed = value["pack"] == "size"
    return (
        (not packed or (_packed_fields(value) and all(map(_packed_entry, value["entries"]))))
        and _listing(_variant_bytes)(value.get("variants", []))
        and all(_listing(_text)(entry.get("variants", [])) for entry in value["entries"])
        and _listing(_profile_bytes)(value.get("shape_profiles", []))
    )


_entry = _record(layer=_text, name=_text, offset=_size, size=_size)
_packed_entry = _record(form=_text, stored=_size)
_weights_fields = _record(
    content_bytes=_size,
    embedded=lambda v: isinstance(v, bool),
    entries=_listing(_entry),
    header_bytes=_size,
    pack=_one_of("speed", "size"),
)
_packed_fields = _record(streams=_listing(_record(kind=_text, size=_size)), table_bytes=_size)
_variant_bytes = _record(added_bytes=_size, code_bytes=_size, read_bytes=_size, variant=_text)
_profile_bytes = _record(added_bytes=_size, read_bytes=_size)
_step = _record(layer=_text, function=_text, work_items=_size, max_threads=_size)
_variant = {"variant": _text, "features": _listing(_text), "steps": _listing(_step)}
_profile = {
    **_variant,
    "arena_bytes": _size,
    "better": _listing(_record(**_variant)),
    "inputs": _listing(_tensor),
    "outputs": _listing(_tensor),
}

_FIELDS: Final[Mapping[str, Check]] = {
    **_profile,
    "abi": _count,
    "certificates": _listing(_record()),
    "device": _one_of("cuda"),
    "emit": _listing(_text),
    "files": _files,
    "fingerprint": _hex(16),
    "ir": _hex(64),
    "more_graphs": _listing(_record(certificates=_listing(_record()), ir=_hex(64))),
    "more_shapes": _listing(_record(**_profile)),
    "name": _text,
    "needed": _listing(_text),
    "pipeline": _text,
    "recipe": _text,
    "stack_bytes": lambda value: value is None or _size(value),
    "symbol": _identifier,
    "target": _text,
    "tf32": lambda v: isinstance(v, bool),
    "threads": _count,
    "triple": _text,
    "weights": _weights,
}
"""What each field has to be; those of the compiler's own callers may be missing."""

_OPTIONAL: Final = frozenset(
    (
        *("certificates", "device", "ir", "more_graphs", "needed", "pipeline", "recipe"),
        *("stack_bytes", "target", "tf32"),
    )
)


def fault(manifest: Mapping[str, Any]) -> str:
    """The first field of a manifest that is missing or not what it has to be; "" if there is none.

    Args:
        manifest: JSON values.
    """
    for key, check in _FIELDS.items():
        if key not in manifest:
            if key not in _OPTIONAL:
                return f"the field {key!r} is missing"
        elif not check(manifest[key]):
            return f"the field {key!r} is not what it has to be"
    first, *others = (
        [row["variant"] for row in (profile, *profile["better"])]
        for profile in (manifest, *manifest["more_shapes"])
    )
    if any(names != first for names in others):
        return "the field 'more_shapes' has other variants than the first shape profile"
    return ""
