"""The reference part of docs/cli.md, made from the commands themselves.

``python -m dlcc.cli.reference`` prints it; a test compares it with the page.
"""

from __future__ import annotations

import sys

import typer.main

from dlcc.cli.app import app


def reference() -> str:
    """One section per verb: what it does, its arguments and its options."""
    group = typer.main.get_command(app)
    sections = []
    for verb, command in group.commands.items():  # type: ignore[attr-defined]
        what = (command.help or "").strip()
        rows = ["| option | meaning | default |", "|---|---|---|"]
        for parameter in command.params:
            if "--help" in parameter.opts:
                continue
            text = str(getattr(parameter, "help", "") or "").replace("|", "\\|")
            rows.append(f"| {_name(parameter)} | {text} | {_default(parameter)} |")
        sections.append(f"## `dlcc {verb}`\n\n{what}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(sections)


def _name(parameter: object) -> str:
    opts = [str(o) for o in getattr(parameter, "opts", ())]
    metavar = getattr(parameter, "metavar", None)
    if not any(o.startswith("-") for o in opts):
        return f"`{metavar or opts[0].upper()}`"
    names = ", ".join(f"`{o}`" for o in opts)
    return f"{names} `{metavar}`" if metavar else names


def _default(parameter: object) -> str:
    if getattr(parameter, "required", False):
        return "required"
    shown = getattr(parameter, "show_default", True)
    if isinstance(shown, str):
        return shown
    value = getattr(parameter, "default", None)
    if not shown or value is None or value is False or value == "":
        return ""
    return f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
