"""Recipes: what is done to which layer, as a TOML file that becomes a pipeline.

::

    before = "..."                   # pipeline that runs first; default: the exact passes

    [quantize]                       # a pass on the whole network, and its options
    bits = 8

    [[layers]]                       # what is done to layers by name; the first entry that
    match = ["conv1", "stem*"]       # matches a layer is the layer's
    quantize = false                 # not this pass on these layers

    [[layers]]
    match = "fc*"
    prune = { sparsity = 0.9, pattern = "block16x4" }
    quantize = { weights = 4 }       # an option of the network's pass that has a value by layer

Every key is the name of a pass, every value its options, as ``dlcc passes NAME`` tells them. A pass
of the network runs on all layers, unless the layer's entry gives it other options or ``false``.
Passes run by their stage (:class:`passes.base.Stage`), those of one stage in the order of the file.
"""

from __future__ import annotations

import difflib
import errno
import glob
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph
from passes.base import Pass, registered_passes
from passes.compression.layers import no_match
from passes.compression.weight_only import WeightOnly
from passes.names import named, names
from passes.options import Option, options_of
from passes.pipeline import parse_pipeline
from passes.pipelines import OPTIMISE
from passes.quantization.structure import ACCUMULATING, LAYERS

Options = Mapping[str, Any]

_CHOICE = ("only", "exclude")


@dataclass(frozen=True)
class Place:
    """Where something stands: a file, and a line of it (0: not known), and the table's name."""

    file: str
    line: int
    table: str

    def __str__(self) -> str:
        line = f", line {self.line}" if self.line else ""
        return f"{self.file}{line}, {self.table}" if self.table else f"{self.file}{line}"

    def error(self, what: str, why: str = "", fix: str = "") -> DlccError:
        """The error of what stands here."""
        return DlccError(ExitCode.USAGE, what, where=str(self), why=why, fix=fix)


@dataclass(frozen=True)
class Entry:
    """An entry of ``layers``.

    Attributes:
        match: patterns (as of a shell) of names.
        passes: options by name of a pass; None for a pass that is not to run.
        place: where it stands.
    """

    match: tuple[str, ...]
    passes: Mapping[str, Options | None]
    place: Place


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read, and whose options were checked.

    Attributes:
        text: of the file.
        before: passes that run first.
        network: options of the passes on the whole network.
        entries: what is done to layers, the first that matches counts.
        places: where the network's passes stand.
    """

    text: str
    before: tuple[Pass, ...]
    network: Mapping[str, Options]
    entries: tuple[Entry, ...]
    places: Mapping[str, Place]

    @staticmethod
    def load(path: str | Path) -> Recipe:
        """Read a file.

        Raises:
            DlccError: it cannot be read (INPUT_FILE), or is no recipe (USAGE).
        """
        try:
            place = Path(path)
            if place.exists() and not (place.is_file() or place.is_dir()):
                # a pipe would wait for a writer, a device may never end
                raise OSError(errno.EINVAL, "it is not a regular file", str(path))
            text = place.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise DlccError(
                ExitCode.INPUT_FILE,
                "the recipe cannot be read",
                where=str(path),
                why=why or str(error),
                fix="give a TOML file",
            ) from None
        return Recipe.parse(text, str(path))

    @staticmethod
    def parse(text: str, file: str = "recipe") -> Recipe:
        """Read a text.

        Args:
            text: TOML.
            file: its name, for errors.

        Raises:
            DlccError: USAGE, with the line and the table that is at fault.
        """
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Place(file, 0, "").error(
                "the recipe is not TOML",
                str(error),
                "mend the line; https://toml.io tells the rest",
            ) from None
        recipe = _Reader(text, file).read(data)
        recipe.check()
        return recipe

    def passes(self, graph: Graph) -> list[Pass]:
        """The pipeline for a network.

        Raises:
            DlccError: USAGE, a pattern matches no layer, or an entry has no layer left.
        """
        return [*self.before, *_Resolved(self, graph).passes()]

    def check(self) -> None:
        """Check what can be checked without a network.

        Raises:
            DlccError: USAGE, passes that exclude each other, or options out of range.
        """
        for name, options in self.network.items():
            _build(name, options, self.places[name])
        _check_quantisers(self)
        for entry in self.entries:
            for name, own in entry.passes.items():
                _check_own(self, entry, name, own)
            _check_encodings(self, entry)


# -- reading -----------------------------------------------------------------------------------


class _Reader:
    """Turns parsed TOML into a recipe; knows on which lines tables start."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.lines = text.splitlines()
        self.text = text

    def read(self, data: Mapping[str, Any]) -> Recipe:
        network: dict[str, Options] = {}
        places: dict[str, Place] = {}
        for key, value in data.items():
            if key in ("before", "layers"):
                continue
            place = Place(self.file, self._line(rf"\[\s*\"?{re.escape(key)}\"?\s*\]|{key}\b"), "")
            place = Place(self.file, place.line, f"[{key}]")
            _check_pass(key, place, ("before", "layers"))
            if not isinstance(value, dict):
                raise place.error(
                    f"{key} = {value!r} is no table of options",
                    fix=f"write [{key}] and its options below it, which may be none",
                )
            network[key], places[key] = value, place
        entries = tuple(self._entries(data.get("layers", [])))
        return Recipe(self.text, self._before(data.get("before")), network, entries, places)

    def _before(self, value: object) -> tuple[Pass, ...]:
        place = Place(self.file, self._line(r"before\b"), "before")
        if value is None:
            return tuple(parse_pipeline(OPTIMISE))
        if not isinstance(value, str):
            raise place.error(
                f"before = {value!r} is no pipeline", fix='write before = "fold-batch-norm,..."'
            )
        try:
            return tuple(parse_pipeline(value))
        except DlccError as error:
            raise _moved(error, place) from None

    def _entries(self, found: object) -> Iterator[Entry]:
        starts = [i for i, line in enumerate(self.lines, 1) if re.match(r"\s*\[\[\s*layers", line)]
        if not isinstance(found, list) or not all(isinstance(e, dict) for e in found):
            line = self._line(r"\[\s*layers|layers\b")
            raise Place(self.file, line, "layers").error(
                "layers must be entries", fix="write [[layers]] in front of each, in two brackets"
            )
        known = starts if len(starts) == len(found) else [0] * len(found)
        for number, (table, line) in enumerate(zip(found, known, strict=True), 1):
            place = Place(self.file, line, f"entry {number} of layers")
            yield self._entry(dict(table), place)

    def _entry(self, table: dict[str, Any], place: Place) -> Entry:
        match = table.pop("match", None)
        patterns = (match,) if isinstance(match, str) else tuple(match or ())
        if not patterns or not all(isinstance(p, str) and p for p in patterns):
            raise place.error(
                "the entry does not say which layers it is for",
                "match must be a name or a list of names" if match is not None else "no match",
                'write match = "conv*" or match = ["conv1", "fc*"]',
            )
        place = Place(place.file, place.line, f"{place.table} (match = {', '.join(patterns)})")
        passes: dict[str, Options | None] = {}
        for key, value in table.items():
            _check_key(key, value, place)
            passes[key] = None if value is False else {} if value is True else value
        return Entry(patterns, passes, place)

    def _line(self, pattern: str) -> int:
        """The first line that starts with a pattern; 0 if there is none."""
        found = re.compile(rf"\s*(?:{pattern})")
        return next((i for i, line in enumerate(self.lines, 1) if found.match(line)), 0)


def _moved(error: DlccError, place: Place) -> DlccError:
    """The same error, told with its place in the recipe."""
    where = f"{place}, {error.where}" if error.where else str(place)
    return DlccError(error.code, error.what, where=where, why=error.why, fix=error.fix)


def _check_pass(name: str, place: Place, others: Sequence[str]) -> None:
    """Check that a pass has this name; ``others`` may have been meant too."""
    known = registered_passes()
    if name in known:
        return
    near = difflib.get_close_matches(name, [*known, *others], n=1, cutoff=0.5)
    raise place.error(
        f"there is no pass named {name!r}",
        f"a key is the name of a pass, or {' or '.join(others)}",
        (f"did you mean {near[0]!r}? " if near else "") + "`dlcc passes` lists all passes",
    )


def _check_key(key: str, value: object, place: Place) -> None:
    """Check a key of an entry, and that its value is a table, true or false."""
    if key in ("method", "passes"):
        name = value if isinstance(value, str) and value in registered_passes() else "prune"
        raise place.error(
            f"there is no key {key!r}",
            "the name of a pass is the key, its options are the value",
            f"write {name} = {{ ... }} with the options in braces, or {name} = true for none",
        )
    _check_pass(key, place, ("match",))
    if not isinstance(value, dict | bool):
        raise place.error(
            f"{key} = {value!r} is neither options nor true or false",
            fix=f"write {key} = {{ option = value, ... }}",
        )


# -- options -----------------------------------------------------------------------------------


def _options(cls: type[Pass]) -> dict[str, Option]:
    return {item.name: item for item in options_of(cls)}


def _by_layer(cls: type[Pass]) -> dict[str, Option]:
    """Options that have a value for each layer."""
    return {item.name: item for item in options_of(cls) if item.by_layer}


def _chooses(cls: type[Pass]) -> bool:
    """Whether the pass works on layers one by one, chosen by name."""
    return "only" in _options(cls)


def _build(name: str, given: Options, place: Place, **more: tuple[str, ...]) -> Pass:
    """A pass with options as TOML has them, and further ones by field."""
    cls = registered_passes()[name]
    known = _options(cls)
    values: dict[str, Any] = {}
    for key, raw in given.items():
        item = known.get(key.replace("_", "-"))
        if item is None:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            raise place.error(
                f"pass {name!r} has no option {key!r}",
                f"its options are: {', '.join(known)}" if known else "it takes no options",
                f"did you mean {near[0]!r}?" if near else f"`dlcc passes {name}` tells them",
            )
        values[item.field] = _value(item, raw, f"{place}, pass {name!r}")
    for field, extra in more.items():
        values[field] = (*extra, *values.get(field, ()))
    try:
        return cls(**values)
    except DlccError as error:
        raise _moved(error, place) from None
    except TypeError:
        missing = [n for n, o in known.items() if o.field not in values and o.required]
        raise place.error(f"pass {name!r} needs option {', '.join(missing)}") from None


def _value(item: Option, raw: object, where: str) -> Any:
    """An option's value as Python has it."""
    if raw == "none" and item.optional:
        return None
    value = tuple(raw) if isinstance(raw, list) else raw
    if item.many and not isinstance(value, tuple):
        value = (value,)
    if item.base is str and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    item.check(value, where)
    return value


# -- what excludes each other ------------------------------------------------------------------


def _check_quantisers(recipe: Recipe) -> None:
    widths = [
        name
        for name, options in recipe.network.items()
        if _build(name, options, recipe.places[name]).layer_bits not in (None, 16)
    ]
    if len(widths) > 1:
        raise recipe.places[widths[1]].error(
            f"{widths[0]} and {widths[1]} do not go together",
            "each of them turns the whole network into integers; the second would find no floats",
            f"leave out one of them; layers that {widths[0]} is to spare say {widths[0]} = false",
        )


def _check_own(recipe: Recipe, entry: Entry, name: str, own: Options | None) -> None:
    """What an entry says of one pass."""
    cls, place = registered_passes()[name], entry.place
    if _chooses(cls):
        if any(key in _CHOICE for key in own or ()):
            raise place.error(
                f"{name} has {' and '.join(k for k in _CHOICE if k in (own or ()))} here",
                "the entry's match says which layers it is for",
                "leave it out, or change match",
            )
        if own is not None:
            _build(name, own, place)
        return
    if name not in recipe.network:
        raise place.error(
            f"{name} works on the whole network, which does not run it",
            fix=f"add a table [{name}]; entries tell where layers differ",
        )
    if own is None:
        if "exclude" not in _options(cls):
            raise place.error(f"{name} cannot leave out layers", fix=f"leave out {name} = false")
        return
    _check_layer_options(cls, name, own, place)


def _check_layer_options(cls: type[Pass], name: str, own: Options, place: Place) -> None:
    """Options of a network's pass that an entry gives for its layers."""
    allowed = _by_layer(cls)
    told = f"an entry may give {', '.join(allowed)}" if allowed else "an entry may say false alone"
    for key, value in own.items():
        if key.replace("_", "-") not in allowed:
            raise place.error(
                f"{name} has no option {key!r} for single layers",
                f"{told}; the other options hold for the whole network",
                f"give {key} in [{name}]" if key in _options(cls) else "",
            )
        if not isinstance(value, int) or isinstance(value, bool):
            raise place.error(f"{name}: {key} = {value!r} is no integer", fix=f"write {key} = 4")
        _build(name, {key: [f"*:{value}"]}, place)
    if not own:
        raise place.error(
            f"{name} = true says nothing: it runs on all layers that are not left out",
            told,
            f"leave it out, or write {name} = false",
        )


def _check_encodings(recipe: Recipe, entry: Entry) -> None:
    """A weight has one encoding."""
    own = [n for n, o in entry.passes.items() if o is not None]
    own += [n for n in recipe.network if n not in entry.passes]
    found = [n for n in own if issubclass(registered_passes()[n], WeightOnly)]
    if len(found) > 1:
        raise entry.place.error(
            f"{' and '.join(found)} do not go together",
            "each of them says how the same weights are stored",
            f"keep one of them: write {found[1]} = false",
        )


# -- the network -------------------------------------------------------------------------------


class _Resolved:
    """A recipe for one network: which entry each layer has."""

    def __init__(self, recipe: Recipe, graph: Graph) -> None:
        self.recipe = recipe
        heavy = [n.loc for n in graph.nodes if n.op in ACCUMULATING]
        self.all = list(dict.fromkeys([*heavy, *(n.loc for n in graph.nodes)]))
        self.layers = [n.loc for n in graph.nodes if n.op in LAYERS]
        self.owner: dict[str, Entry] = {}
        for entry in recipe.entries:
            self._enter(entry, heavy)

    def _enter(self, entry: Entry, heavy: Sequence[str]) -> None:
        """Give an entry its layers."""
        for pattern in entry.match:
            if not any(names(pattern, loc) for loc in self.all):
                raise no_match(pattern, list(dict.fromkeys(heavy)), str(entry.place))
        matched = [loc for loc in self.all if named(entry.match, loc)]
        layers = [loc for loc in matched if loc in self.layers]
        weights = [n for n, o in entry.passes.items() if o is not None]
        if weights and not layers:
            raise entry.place.error(
                f"{weights[0]} works on layers with weights, of which the entry names none",
                f"it names {', '.join(matched[:8])}",
                f"the layers are {', '.join(self.layers[:8])}",
            )
        taken = {loc: self.owner[loc] for loc in layers or matched if loc in self.owner}
        if len(taken) == len(layers or matched):
            before = next(iter(taken.values()))
            raise entry.place.error(
                "the entry has no layer left",
                f"{', '.join(list(taken)[:4])} belong to {before.place.table} before it",
                "put it in front of that one: a layer's first match counts",
            )
        for loc in matched:
            self.owner.setdefault(loc, entry)

    def passes(self) -> Iterator[Pass]:
        """The passes, by stage, then in the order of the file."""
        found = registered_passes()
        mentioned = [*(n for e in self.recipe.entries for n in e.passes), *self.recipe.network]
        for name in sorted(dict.fromkeys(mentioned), key=lambda n: found[n].stage_of()):
            if _chooses(found[name]):
                yield from self._of_layers(name)
            else:
                yield self._of_network(name)

    def _of_layers(self, name: str) -> Iterator[Pass]:
        """One pass for the network, one for each entry that has options of its own."""
        if name in self.recipe.network:
            different = [e for e in self.recipe.entries if name in e.passes]
            exclude = self._spelled(different, self.layers)
            yield _build(name, self.recipe.network[name], self.recipe.places[name], exclude=exclude)
        for entry in self.recipe.entries:
            own = entry.passes.get(name)
            if own is not None:
                yield _build(name, own, entry.place, only=self._spelled([entry], self.layers))

    def _of_network(self, name: str) -> Pass:
        cls, place = registered_passes()[name], self.recipe.places[name]
        more: dict[str, tuple[str, ...]] = {}
        left = [e for e in self.recipe.entries if e.passes.get(name, {}) is None]
        if left:
            more["exclude"] = self._spelled(left, self.all)
        for key, item in _by_layer(cls).items():
            values: list[str] = []
            for entry in self.recipe.entries:
                own = {k.replace("_", "-"): v for k, v in (entry.passes.get(name) or {}).items()}
                if key in own:
                    found = self._spelled([entry], self.layers)
                    values += [f"{pattern}:{own[key]}" for pattern in found]
            if values:
                more[item.field] = tuple(values)
        return _build(name, self.recipe.network[name], place, **more)

    def _spelled(self, entries: Iterable[Entry], among: Sequence[str]) -> tuple[str, ...]:
        """Patterns of the layers of some entries: as the file has them, if these say the same."""
        out: list[str] = []
        for entry in entries:
            own = [loc for loc in among if self.owner.get(loc) is entry]
            meant = [p for p in entry.match if any(names(p, loc) for loc in among)]
            if [loc for loc in among if named(meant, loc)] == own:
                out += meant
            else:
                out += [glob.escape(loc) for loc in dict.fromkeys(own)]
        return tuple(out)


__all__ = ["Entry", "Place", "Recipe"]
