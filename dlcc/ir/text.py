"""Textual form of the IR: one line per op, in which a body stands; ``parse(print(g)) == g``.

::

    graph "net" {
      input %x: f32[1,3,8,8]
      const @w: f32[4,3,3,3]!affine<bits=8, signed=true, ...> = #5d1f...
      %y: f32[1,4,8,8]@nhwc = conv2d(%x, @w, _) {pads=[1,1,1,1]} loc("layer1.0")
      output "logits" %y
    }

Contents of constants and long lists of scales stand as ``#hash`` and live in a sidecar ``.npz``
under ``hash/part``; :func:`save` and :func:`load` handle the pair.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlcc.archives import UNREADABLE, read_arrays
from dlcc.bounds import check_bytes, check_shape
from dlcc.errors import DlccError, ExitCode
from dlcc.ir.dtypes import DType
from dlcc.ir.encodings import DENSE, Array, Dense, Encoding
from dlcc.ir.graph import AttrValue, Constant, Graph, Node, Value
from dlcc.ir.types import LAYOUTS, TensorType
from dlcc.wholefile import write_whole

_INLINE = 8
"""Longer numeric lists go to the sidecar."""

_MOST_NESTED = 16
"""Lists and encodings within each other."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.$-]+")
"""Other names stand in quotes, as JSON strings."""

_MOST_DIGITS = 19
"""Digits of an axis' length."""

Sidecar = dict[str, Array]


# -- printing ----------------------------------------------------------------------------------


def _float_text(value: float) -> str:
    """Shortest text that reads back as the same double.

    A float32 number that is no short double is written as its shortest float32 text and an f:
    ``0.1f`` is the double 0.10000000149011612.
    """
    text = repr(value)
    with np.errstate(over="ignore"):
        single = np.float32(value)
    short = str(single)
    return f"{short}f" if float(single) == value and len(short) + 1 < len(text) else text


def _list_reference(values: tuple[Any, ...], sidecar: Sidecar) -> str:
    array = np.asarray(values, dtype=np.float64 if isinstance(values[0], float) else np.int64)
    digest = hashlib.sha256(array.dtype.str.encode() + array.tobytes()).hexdigest()[:24]
    sidecar[f"{digest}/list"] = array
    return f"#{digest}"


def _value_text(value: object, sidecar: Sidecar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return _float_text(float(value))
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Encoding):
        return encoding_text(value, sidecar)
    if isinstance(value, Graph):
        return print_graph(value, sidecar).rstrip().replace("\n", "\n  ")
    if isinstance(value, tuple):
        floats = all(isinstance(v, float) for v in value)
        ints = all(type(v) is int and abs(v) < 1 << 63 for v in value)
        if len(value) > _INLINE and (floats or ints):
            return _list_reference(value, sidecar)
        return "[" + ",".join(_value_text(v, sidecar) for v in value) + "]"
    if value is None:
        return "none"
    raise TypeError(f"attribute value {value!r} has no text form")


def encoding_text(encoding: Encoding, sidecar: Sidecar | None = None) -> str:
    """``name<field=value, ...>``, fields at their default left out."""
    sink = {} if sidecar is None else sidecar
    assert dataclasses.is_dataclass(encoding)
    fields = []
    for f in dataclasses.fields(encoding):
        value = getattr(encoding, f.name)
        if f.default is dataclasses.MISSING or value != f.default:
            fields.append(f"{f.name}={_value_text(value, sink)}")
    return f"{encoding.name}<{', '.join(fields)}>"


def type_text(type_: TensorType, sidecar: Sidecar | None = None) -> str:
    """Text of a type, e.g. ``f32[1,64,56,56]!affine<...>@nhwc``."""
    text = f"{type_.dtype}[{','.join(map(str, type_.shape))}]"
    if not isinstance(type_.encoding, Dense):
        text += "!" + encoding_text(type_.encoding, sidecar)
    return text + (f"@{type_.layout}" if type_.layout else "")


def _name_text(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else json.dumps(name)


def _operand(value: Value | None) -> str:
    if value is None:
        return "_"
    return ("@" if value.is_constant else "%") + _name_text(value.name)


def _node_text(node: Node, sidecar: Sidecar) -> str:
    results = ", ".join(
        f"%{_name_text(v.name)}: {type_text(v.type, sidecar)}" for v in node.outputs
    )
    text = f"{results} = {node.op}({', '.join(_operand(v) for v in node.inputs)})"
    if node.attrs:
        attrs = ", ".join(f"{k}={_value_text(v, sidecar)}" for k, v in sorted(node.attrs.items()))
        text += f" {{{attrs}}}"
    return text + (f" loc({json.dumps(node.loc)})" if node.loc else "")


def print_graph(graph: Graph, sidecar: Sidecar | None = None) -> str:
    """The textual form; arrays are put into ``sidecar`` where one is given."""
    sink: Sidecar = {} if sidecar is None else sidecar
    lines = [f"graph {json.dumps(graph.name)} {{"]
    lines += [f"  input {_operand(v)}: {type_text(v.type, sink)}" for v in graph.inputs]
    for value in graph.constants():
        assert value.constant is not None
        digest = value.constant.digest
        sink.update({f"{digest}/{part}": a for part, a in value.constant.parts.items()})
        lines.append(f"  const {_operand(value)}: {type_text(value.type, sink)} = #{digest}")
    lines += ["  " + _node_text(node, sink) for node in graph.nodes]
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        lines.append(f"  output {json.dumps(name)} {_operand(value)}")
    return "\n".join([*lines, "}", ""])


# -- parsing -----------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*")
    |(?P<number>[-+]?(?:inf|nan|\d+\.?\d*(?:[eE][-+]?\d+)?f?)(?![\w.]))
    |(?P<value>[%@](?:[A-Za-z0-9_.$-]+|"(?:[^"\\]|\\.)*"))
    |(?P<hash>\#[0-9a-f]+)
    |(?P<word>[A-Za-z_][A-Za-z0-9_.]*)
    |(?P<punct>[{}()\[\]<>,:=!]))""",
    re.VERBOSE,
)


class _Parser:
    """Recursive descent over one graph's text; every error names the line."""

    def __init__(self, text: str, sidecar: Mapping[str, Array], source: str) -> None:
        self.text, self.sidecar, self.source = text, sidecar, source
        self.position = self.depth = 0
        self.values: dict[str, Value] = {}
        self.names: set[str] = set()

    def place(self) -> str:
        return f"{self.source}:{self.text.count(chr(10), 0, self.position) + 1}"

    def fail(self, why: str) -> DlccError:
        return DlccError(
            ExitCode.MODEL,
            "the IR text cannot be read",
            where=self.place(),
            why=why,
            fix="write .dlir files with `dlcc opt MODEL -o OUT.dlir`",
        )

    def peek(self) -> tuple[str, str]:
        match = _TOKEN.match(self.text, self.position)
        if match is None or match.lastgroup is None:
            rest = self.text[self.position : self.position + 20].strip()
            if not rest:
                return "end", ""
            raise self.fail(f"unexpected {rest!r}")
        return match.lastgroup, match.group(match.lastgroup)

    def next(self, kind: str = "", text: str = "") -> str:
        found_kind, found = self.peek()
        if (kind and found_kind != kind) or (text and found != text):
            raise self.fail(f"expected {text or kind}, found {found or 'the end'!r}")
        match = _TOKEN.match(self.text, self.position)
        assert match is not None
        self.position = match.end()
        return found

    def accept(self, text: str) -> bool:
        if self.peek()[1] == text and self.peek()[0] != "string":
            self.next()
            return True
        return False

    def string(self) -> str:
        return self.unquoted(self.next("string"))

    def unquoted(self, text: str) -> str:
        try:
            plain = str(json.loads(text))
            plain.encode()
        except ValueError:
            raise self.fail(f"{text} is not a JSON string of whole characters") from None
        if "\0" in plain:
            raise self.fail(f"{text} holds a zero byte")
        return plain

    def array(self, key: str) -> Array:
        if key not in self.sidecar:
            raise self.fail(f"the sidecar .npz has no array {key!r}")
        return self.sidecar[key]

    def attribute(self) -> Any:
        self.depth += 1
        if self.depth > _MOST_NESTED:
            raise self.fail(f"lists are nested deeper than {_MOST_NESTED}")
        value = self._attribute()
        self.depth -= 1
        return value

    def _attribute(self) -> Any:
        kind, text = self.peek()
        if kind == "number":
            self.next()
            if text.endswith("f") and not text.endswith("inf"):
                return float(np.float32(text[:-1]))
            return float(text) if re.search(r"[.eEinf]", text) else int(text)
        if kind == "string":
            return self.string()
        if kind == "hash":
            return tuple(self.array(self.next()[1:] + "/list").tolist())
        if self.accept("["):
            return tuple(self.sequence("]", self.attribute))
        if text == "graph":
            return self.body()
        word = self.next("word")
        if word in ("true", "false"):
            return word == "true"
        return None if word == "none" else self.encoding(word)

    def sequence(self, close: str, item: Any) -> list[Any]:
        items: list[Any] = []
        while not self.accept(close):
            if items:
                self.next("punct", ",")
            items.append(item())
        return items

    def field(self) -> tuple[str, Any]:
        key = self.next("word")
        self.next("punct", "=")
        return key, self.attribute()

    def encoding(self, name: str) -> Encoding:
        self.next("punct", "<")
        fields = dict(self.sequence(">", self.field))
        try:
            return Encoding.by_name(name)(**fields)
        except KeyError:
            raise self.fail(f"unknown encoding {name!r}") from None
        except (TypeError, ValueError) as error:
            raise self.fail(str(error)) from None

    def dimension(self) -> int:
        text = self.next("number")
        if not text.isdecimal() or len(text) > _MOST_DIGITS:
            raise self.fail(f"{text} is not the length of an axis")
        return int(text)

    def type(self) -> TensorType:
        name = self.next("word")
        try:
            dtype = DType.parse(name)
        except KeyError:
            raise self.fail(f"unknown dtype {name!r}") from None
        self.next("punct", "[")
        shape = tuple(self.sequence("]", self.dimension))
        encoding = self.encoding(self.next("word")) if self.accept("!") else DENSE
        layout = ""
        if self.peek()[0] == "value" and self.peek()[1][1:] in LAYOUTS:
            layout = self.next()[1:]
        if layout and len(shape) != len(LAYOUTS[layout]):
            raise self.fail(f"layout {layout} is of {len(LAYOUTS[layout])} axes, not {len(shape)}")
        check_shape(shape, encoding.storage(dtype).bits / 8, self.place())
        return TensorType(shape, dtype, encoding, layout)

    def operand(self) -> Value | None:
        if self.peek() == ("word", "_"):
            self.next()
            return None
        name = self.next("value")
        if name not in self.values:
            raise self.fail(f"{name} is used before it is defined")
        return self.values[name]

    def define(self, token: str, type_: TensorType) -> Value:
        name = token[1:] if token[1] != '"' else self.unquoted(token[1:])
        if name in self.names:
            raise self.fail(f"{token} is defined twice")
        self.names.add(name)
        value = self.values[token] = Value(name, type_)
        return value

    def typed_name(self) -> tuple[str, TensorType]:
        token = self.next("value")
        self.next("punct", ":")
        return token, self.type()

    def node(self, graph: Graph) -> None:
        results = [self.typed_name()]
        while self.accept(","):
            results.append(self.typed_name())
        self.next("punct", "=")
        op = self.next("word")
        self.next("punct", "(")
        operands = self.sequence(")", self.operand)
        attrs: dict[str, AttrValue] = {}
        if self.accept("{"):
            attrs = dict(self.sequence("}", self.field))
        loc = ""
        if self.accept("loc"):
            self.next("punct", "(")
            loc = self.string()
            self.next("punct", ")")
        node = Node(op, attrs, loc)
        node.set_inputs(operands)
        for index, (token, type_) in enumerate(results):
            value = self.define(token, type_)
            value.producer, value.index = node, index
            node.outputs.append(value)
        graph.nodes.append(node)

    def constant(self, graph: Graph) -> None:
        token, type_ = self.typed_name()
        self.next("punct", "=")
        digest = self.next("hash")[1:]
        prefix = digest + "/"
        parts = {k[len(prefix) :]: a for k, a in self.sidecar.items() if k.startswith(prefix)}
        if not parts:
            raise self.fail(f"the sidecar .npz has no parts of constant {token}")
        if type_.storage.kind == "bfloat":  # numpy's files know bfloat16 only as two raw bytes
            half = type_.storage.numpy
            parts = {k: a.view(half) if a.dtype.kind == "V" else a for k, a in parts.items()}
        value = self.define(token, type_)
        value.constant = Constant(parts)
        if value.constant.digest != digest:
            raise self.fail(f"constant {token}: contents do not match the hash #{digest}")
        graph._constants[(digest, type_)] = value

    def body(self) -> Graph:
        """A graph within a node, with names of its own."""
        outside = self.values, self.names
        self.values, self.names = {}, set()
        graph = self.graph(inner=True)
        self.values, self.names = outside
        return graph

    def graph(self, inner: bool = False) -> Graph:
        self.next("word", "graph")
        graph = Graph(self.string())
        self.next("punct", "{")
        outputs: list[tuple[str, Value]] = []
        while not self.accept("}"):
            if self.accept("input"):
                graph.inputs.append(self.define(*self.typed_name()))
            elif self.accept("const"):
                self.constant(graph)
            elif self.accept("output"):
                name = self.string()
                if name in {n for n, _ in outputs}:
                    raise self.fail(f"the output {name!r} is listed twice")
                value = self.operand()
                if value is None:
                    raise self.fail("an output needs a value")
                outputs.append((name, value))
            else:
                self.node(graph)
        if not inner and self.peek()[0] != "end":
            raise self.fail("text after the graph's closing brace")
        if not outputs:
            raise self.fail("the graph has no output")
        graph._names = self.names
        graph.set_outputs([v for _, v in outputs], [n for n, _ in outputs])
        return graph


def parse_graph(text: str, sidecar: Mapping[str, Array], source: str = "<text>") -> Graph:
    """Read a graph back from its textual form.

    Raises:
        DlccError: with the line, where the text or the sidecar does not fit.
    """
    return _Parser(text, sidecar, source).graph()


def files_of(graph: Graph) -> dict[str, bytes]:
    """What is stored of a graph: its text (.dlir) and the contents of its constants (.npz)."""
    sidecar: Sidecar = {}
    text = print_graph(graph, sidecar)
    arrays = io.BytesIO()
    np.savez(arrays, allow_pickle=False, **{k: sidecar[k] for k in sorted(sidecar)})
    return {".dlir": text.encode(), ".npz": arrays.getvalue()}


def save(graph: Graph, path: Path) -> None:
    """Write ``path`` (.dlir) and its sidecar ``path`` with suffix .npz."""
    files = files_of(graph)
    write_whole({path: files[".dlir"], path.with_suffix(".npz"): files[".npz"]})


def load(path: Path) -> Graph:
    """Read a .dlir file and its sidecar.

    Raises:
        DlccError: a file is missing or does not fit.
    """
    side = path.with_suffix(".npz")
    try:
        check_bytes(path.stat().st_size, "the text", str(path))
        return parse_graph(path.read_text(encoding="utf-8"), read_arrays(side), str(path))
    except UNREADABLE as error:
        raise DlccError(
            ExitCode.INPUT_FILE,
            "cannot read the IR file and its sidecar",
            where=str(path),
            why=str(error),
            fix=f"keep {path.name} and {side.name} side by side",
        ) from None


def graphs_equal(a: Graph, b: Graph) -> bool:
    """True if both have the same text and the same contents of constants."""
    return print_graph(a) == print_graph(b)


__all__ = [
    "encoding_text",
    "files_of",
    "graphs_equal",
    "load",
    "parse_graph",
    "print_graph",
    "save",
    "type_text",
]
