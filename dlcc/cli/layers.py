"""The per-layer view that ``inspect --profile`` and ``bench --layers`` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlcc.cli.common import check_writable_file
from dlcc.cli.console import Console, Table, bytes_text, count_text, seconds_text

if TYPE_CHECKING:
    from dlcc.inspection import Layer
    from dlcc.limits import Limits

LimitsOption = Annotated[
    Path | None,
    typer.Option(
        "--limits",
        metavar="FILE.json",
        help="Measured limits of the machine; written if they are not there.",
        show_default="in the user's cache",
    ),
]


def limits_from(file: Path | None) -> Callable[[int], Limits]:
    """What gives the machine's limits for a number of threads."""
    from dlcc.limits.measure import limits_for

    if file is not None:
        check_writable_file(file, "--limits")
    return lambda threads: limits_for(threads, file)


def show_profile(console: Console, layers: Sequence[Layer]) -> None:
    """Time of each layer, its share, its speed, and how near to the machine's limit it comes."""
    total = sum(layer.seconds or 0.0 for layer in layers)
    limit = sum(layer.limit_seconds or 0.0 for layer in layers)
    rows = [
        (
            layer.layer,
            layer.op,
            layer.kernel,
            count_text(layer.macs),
            bytes_text(layer.weight_bytes + layer.activation_bytes),
            seconds_text(layer.seconds or 0.0),
            _percent(layer.seconds, total),
            _speed(layer),
            *((_percent(layer.limit_seconds, layer.seconds),) if limit else ()),
        )
        for layer in layers
    ]
    columns = ("layer", "op", "kernel", ">MACs", ">bytes", ">time", ">share", ">GMAC/s")
    console.table(Table((*columns, ">of limit") if limit else columns, rows))
    known = f", {_percent(limit, total)} of the machine's limit ({seconds_text(limit)})"
    console.line(f"all layers: {seconds_text(total)}{known if limit else ''}")


def _speed(layer: Layer) -> str:
    return f"{1e-9 * layer.macs / layer.seconds:.1f}" if layer.macs and layer.seconds else ""


def _percent(part: float | None, whole: float | None) -> str:
    return "" if part is None or not whole else f"{100 * part / whole:.1f} %"
