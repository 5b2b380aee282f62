"""Names that would be paths, commands, symbols or text where they were taken as such."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper

from tests.frontends.models import model, tensor
from tests.hostile.case import Case, case

NAMES = {
    "slash": "/etc/passwd", "parent": "../../../escape", "dot": ".", "dots": "..", "nul": "a\0b",
    "newline": "a\nb", "carriage": "a\rb", "quote": 'a"b', "single": "a'b", "backslash": "a\\b",
    "trigraph": "a??/", "comment-end": "*/ int main(void){} /*", "comment": "//",
    "format": "%s%n%d",
    "shell": "; rm -rf / #", "substitution": "$(reboot)`reboot`", "glob": "*", "space": " ",
    "dash": "-o", "unicode": "\u00fc\u4e2d\U0001f600", "right-to-left": "a\u202eb",
    "bom": "\ufeffa", "surrogate-free": "\ufffd", "long": "n" * 10_000, "keyword": "int",
    "main": "main", "define": "#define", "digits": "123", "percent": "%x: f32[1]", "brace": "}\n",
    "at": "@c", "include": '"\n#include </etc/passwd>\n"', "bell": "\x07\x1b[31m",
    "printf": "printf",
    "library": "dlcc_run", "windows": "C:\\con", "reserved": "__attribute__",
}  # fmt: skip


def _named(text: str) -> onnx.ModelProto:
    """A model in which everything is called ``text``."""
    weight = {f"{text}w": np.eye(4, dtype=np.float32)}
    nodes = [
        helper.make_node("MatMul", [f"{text}x", f"{text}w"], [f"{text}h"], name=text),
        helper.make_node("Softmax", [f"{text}h"], [text], name=text),
    ]
    made = model(nodes, [tensor(f"{text}x", (1, 4))], [text], weight)
    made.graph.name = text
    made.producer_name = made.domain = made.doc_string = text
    made.metadata_props.add(key=text, value=text)
    return made


def names(_rng: np.random.Generator) -> Iterator[Case]:
    """Everything is called by one such name; and names that clash once they are symbols."""
    for name, text in NAMES.items():
        yield case(f"names/{name}", _named(text), compiles=name != "nul",
                   slow=name not in ("include", "nul"))  # fmt: skip
    clash = ["a.b", "a/b", "a_b", "a b", "A_B", "a__b"]
    nodes = [helper.make_node("Relu", [n], [f"{n}!"], name=n) for n in clash]
    made = model(nodes, [tensor(n, (1, 4)) for n in clash], [f"{n}!" for n in clash])
    yield case("names/clash", made, compiles=True)
    invalid = _named("@@@@").SerializeToString().replace(b"@@@@", b"\xff\xfe\x80\xc0")
    yield Case("names/not-utf-8", invalid)
    symbol = model([helper.make_node("Relu", ["x"], ["y"])], [tensor("x", ("../N", 4))], ["y"])
    yield case("names/dimension", symbol)
