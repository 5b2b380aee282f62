"""Pattern matching and rewriting over the graph.

A :class:`Rule` has a *pattern* (a tree of ops with named captures), a *check* that refuses a match
with a worded reason, and a *rewrite* that builds the replacement. :func:`apply_rules` drives a set
of rules to a fixed point. Algebra lives in the rules; what every rule must obey lives here:

* the values inside a match (every matched node's output but the root's) have one use, unless the
  pattern says ``shared=True``; otherwise the match is refused;
* every activation of a match is dense, unless the rule says ``any_encoding``; captured constants
  are dense, unless the pattern says ``encoded=True``;
* the replacement has the shape and dtype of what it replaces;
* more rewrites than the cap is an error: the rules do not converge.

::

    class SubtractConstant(Rule):
        pattern = op("sub", any_("x"), const("c"))

        def rewrite(self, m: Match) -> list[Value]:
            minus = m.graph.add_constant(-m.array("c"))
            return m.build("add", [m.value("x"), minus])
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import AttrValue, Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import build, op_of
from passes.base import PassResult, Remark


@dataclass(frozen=True)
class Any_:
    """Matches any present operand."""

    capture: str = ""


@dataclass(frozen=True)
class Const:
    """Matches a constant; a dense one unless ``encoded``."""

    capture: str = ""
    encoded: bool = False


@dataclass(frozen=True)
class OpPattern:
    """Matches a value that is the only output of a node with one of the names ``ops``.

    Attributes:
        ops: names of ops.
        operands: patterns of the first operands; further operands are free.
        capture: name under which the node is captured.
        commutative: the first two operands may stand in either order.
        shared: the value may have other uses.
    """

    ops: tuple[str, ...]
    operands: tuple[Operand, ...] = ()
    capture: str = ""
    commutative: bool = False
    shared: bool = False


Operand = Any_ | Const | OpPattern


def any_(capture: str = "") -> Any_:
    """Any operand."""
    return Any_(capture)


def const(capture: str = "", *, encoded: bool = False) -> Const:
    """A constant operand."""
    return Const(capture, encoded)


def op(
    names: str | Sequence[str],
    *operands: Operand,
    capture: str = "",
    commutative: bool = False,
    shared: bool = False,
) -> OpPattern:
    """An op pattern; ``names`` is one name or several."""
    ops = (names,) if isinstance(names, str) else tuple(names)
    return OpPattern(ops, operands, capture, commutative, shared)


@dataclass
class Match:
    """A place where a pattern fits.

    Attributes:
        graph: the graph.
        root: the node that will be replaced.
        nodes: every matched node, the root first.
        interior: the outputs of matched nodes that must have no other use.
        captures: values (operands) and nodes by capture name.
    """

    graph: Graph
    root: Node
    nodes: list[Node] = field(default_factory=list)
    interior: list[Value] = field(default_factory=list)
    captures: dict[str, Value | Node] = field(default_factory=dict)

    def value(self, capture: str) -> Value:
        """A captured operand."""
        found = self.captures[capture]
        assert isinstance(found, Value)
        return found

    def node(self, capture: str) -> Node:
        """A captured node."""
        found = self.captures[capture]
        assert isinstance(found, Node)
        return found

    def array(self, capture: str) -> Array:
        """Contents of a captured constant."""
        return self.value(capture).decoded()

    def build(
        self,
        op_name: str,
        inputs: Sequence[Value | None],
        attrs: Mapping[str, AttrValue] | None = None,
        *,
        loc: str | None = None,
    ) -> list[Value]:
        """Add a node before the root; its ``loc`` is the root's unless given."""
        where = self.root.loc if loc is None else loc
        hint = self.root.outputs[0].name
        node = build(self.graph, op_name, inputs, attrs, loc=where, names=[hint], before=self.root)
        return list(node.outputs)


class Rule(ABC):
    """One rewrite.

    Attributes:
        pattern: what it looks for; the pattern's root is the node that is replaced.
        any_encoding: it is right for quantised activations too.
        quiet: its refusals are no news (clean-up rules).
    """

    pattern: ClassVar[OpPattern]
    any_encoding: ClassVar[bool] = False
    quiet: ClassVar[bool] = False

    def check(self, m: Match) -> str | None:
        """None, or the reason why this match must stay as it is. Must not edit the graph.

        An empty reason says that the rule is not about this match at all: no remark is made.
        """
        return None

    @abstractmethod
    def rewrite(self, m: Match) -> list[Value]:
        """Build the replacement (before the root) and return one value per output of the root."""

    def describe(self, m: Match) -> str:
        """What was done, for the remark."""
        ops = " of ".join(node.op for node in m.nodes)
        return f"{type(self).__name__}: rewrote {ops}"


def match(pattern: OpPattern, root: Node, graph: Graph) -> Match | None:
    """Fit ``pattern`` at ``root``, or None."""
    found = Match(graph, root)
    return found if _match_node(pattern, root, found) else None


def _match_node(pattern: OpPattern, node: Node, m: Match) -> bool:
    if node.op not in pattern.ops or len(node.outputs) != 1:
        return False
    m.nodes.append(node)
    if pattern.capture:
        m.captures[pattern.capture] = node
    swapped = (pattern.operands[1::-1] + pattern.operands[2:]) if pattern.commutative else ()
    for operands in filter(None, (pattern.operands, swapped)):
        state = (list(m.nodes), list(m.interior), dict(m.captures))
        if all(_match_operand(p, node.optional_input(i), m) for i, p in enumerate(operands)):
            return True
        m.nodes, m.interior, m.captures = state
    return not pattern.operands


def _match_operand(pattern: Operand, value: Value | None, m: Match) -> bool:
    if value is None:
        return False
    if isinstance(pattern, OpPattern):
        if value.producer is None:
            return False
        if not pattern.shared:
            m.interior.append(value)
        return _match_node(pattern, value.producer, m)
    if isinstance(pattern, Const) and not (
        value.is_constant and (pattern.encoded or value.type.is_dense)
    ):
        return False
    if pattern.capture:
        if m.captures.get(pattern.capture, value) is not value:
            return False
        m.captures[pattern.capture] = value
    return True


# -- driver ------------------------------------------------------------------------------------


def users_text(graph: Graph, value: Value, but: Node | None = None) -> str:
    """Who else reads ``value``, in words."""
    names = [n.loc or n.op for n in value.users if n is not but]
    names += [
        f"output {name!r}"
        for name, out in zip(graph.output_names, graph.outputs, strict=True)
        if out is value
    ]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class _Driver:
    def __init__(self, graph: Graph, rules: Sequence[Rule], pass_name: str, cap: int) -> None:
        self.graph, self.pass_name, self.cap = graph, pass_name, cap
        self.result = PassResult()
        self.rules: dict[str, list[Rule]] = {}
        for rule in rules:
            for name in rule.pattern.ops:
                self.rules.setdefault(name, []).append(rule)
        self.alive = set(graph.nodes)
        self.queue = deque(graph.nodes)
        self.queued = set(graph.nodes)
        self.refused: dict[tuple[Node, Rule], str] = {}

    def push(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node in self.alive and node not in self.queued:
                self.queue.append(node)
                self.queued.add(node)

    def run(self) -> PassResult:
        while self.queue:
            node = self.queue.popleft()
            self.queued.discard(node)
            if node in self.alive:
                self.visit(node)
        for node in self.graph.nodes:
            for rule in self.rules.get(node.op, ()):
                reason = self.refused.get((node, rule))
                if reason is not None and not rule.quiet:
                    self.result.count("refused")
                    self.result.remarks.append(
                        Remark(self.pass_name, node.loc or node.op, "refused", reason)
                    )
        return self.result

    def visit(self, node: Node) -> None:
        for rule in self.rules.get(node.op, ()):
            self.refused.pop((node, rule), None)
            found = match(rule.pattern, node, self.graph)
            if found is None:
                continue
            reason = self.refusal(rule, found)
            if reason is not None:
                if reason:
                    self.refused[(node, rule)] = reason
                continue
            self.apply(rule, found)
            return

    def refusal(self, rule: Rule, m: Match) -> str | None:
        for node in () if rule.any_encoding else m.nodes:
            for operand in (*node.inputs, *node.outputs):
                if operand is None or operand.is_constant:
                    continue
                if not operand.type.is_dense:
                    return f"%{operand.name} is stored as {operand.type.encoding.name}"
                if operand.type.layout:
                    return f"%{operand.name} has layout {operand.type.layout}"
        reason = rule.check(m)
        if reason is not None:
            return reason
        for value in m.interior:
            if self.graph.use_count(value) != 1:
                others = users_text(self.graph, value, _reader(value, m))
                assert value.producer is not None
                return f"the result of {value.producer!r} is also used by {others}"
        return None

    def apply(self, rule: Rule, m: Match) -> None:
        if int(self.result.statistics.get("rewrites", 0)) >= self.cap:
            raise DlccError(
                ExitCode.INTERNAL,
                f"the rules of {self.pass_name} do not converge",
                where=m.root.loc,
                why=f"{self.cap} rewrites were made; the next is {type(rule).__name__}",
                fix="report it with the pipeline text",
            )
        text, loc = rule.describe(m), m.root.loc or m.root.op
        before, old_names = set(self.graph.nodes), [v.name for v in m.root.outputs]
        values = rule.rewrite(m)
        self.check_types(rule, m.root, values)
        fresh = [n for n in self.graph.nodes if n not in before]
        self.alive.update(fresh)
        touched = [user for v in m.root.outputs for user in v.users]
        self.graph.replace(m.root, values)
        self.alive.discard(m.root)
        self.erase_dead(m.nodes[1:], touched)
        for value, name in zip(values, old_names, strict=True):
            if value.producer in fresh:
                self.graph.rename(value, name)
        self.push(fresh)
        self.push(touched)
        for value in values:
            self.push(value.users)
        self.result.modified = True
        self.result.count("rewrites")
        self.result.remarks.append(Remark(self.pass_name, loc, "applied", text))

    def check_types(self, rule: Rule, root: Node, values: Sequence[Value]) -> None:
        for old, new in zip(root.outputs, values, strict=True):
            if (old.type.shape, old.type.dtype) != (new.type.shape, new.type.dtype):
                raise DlccError(
                    ExitCode.INTERNAL,
                    f"rule {type(rule).__name__} changed a type",
                    where=root.loc,
                    why=f"{old.type.dtype}{list(old.type.shape)} became "
                    f"{new.type.dtype}{list(new.type.shape)}",
                    fix="report it with the pipeline text",
                )

    def erase_dead(self, nodes: Sequence[Node], touched: list[Node]) -> None:
        """Erase matched nodes that nobody reads any more, and queue their neighbours."""
        for node in nodes:
            if node not in self.alive or any(self.graph.use_count(v) for v in node.outputs):
                continue
            operands = [v for v in node.inputs if v is not None]
            self.graph.erase(node)
            self.alive.discard(node)
            for value in operands:
                touched.extend(value.users)
                if value.producer is not None:
                    touched.append(value.producer)


def _reader(value: Value, m: Match) -> Node | None:
    return next((node for node in m.nodes if any(v is value for v in node.inputs)), None)


def apply_rules(
    graph: Graph, rules: Sequence[Rule], pass_name: str, *, cap: int | None = None
) -> PassResult:
    """Apply ``rules`` until none fits any more.

    Rules of one op are tried in the order given. Refusals that still hold at the end are remarks.

    Args:
        graph: edited in place.
        rules: the rules.
        pass_name: name in remarks and errors.
        cap: largest number of rewrites; by default 100 plus 20 per node.

    Raises:
        DlccError: the cap was reached, or a rule changed a type (both are bugs of the rules).
    """
    limit = 100 + 20 * len(graph.nodes) if cap is None else cap
    return _Driver(graph, rules, pass_name, limit).run()


def attr(node: Node, key: str) -> AttrValue:
    """Attribute of a node, or its op's default."""
    value: AttrValue = op_of(node).get(node, key)
    return value
