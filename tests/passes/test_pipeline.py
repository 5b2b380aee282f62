from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph
from passes import (
    Pass,
    PassContext,
    PassResult,
    as_passes,
    describe,
    option,
    parse_pipeline,
    print_pipeline,
)
from passes import base as registry


@dataclass(frozen=True)
class Probe(Pass):
    """Do nothing, with every kind of option.

    Body of the description.
    """

    name: ClassVar[str] = "test-probe"

    bits: int = option(8, "width of a code", unit="bits", minimum=2, maximum=16)
    sparsity: float = option(0.5, "share of zeros", minimum=0.0, maximum=1.0)
    per_channel: bool = option(False, "one scale per channel")
    pattern: str = option("block4x4", "sparsity pattern")
    method: Literal["mse", "minmax"] = option("mse", "how to choose scales")
    skip: tuple[str, ...] = option((), "layers to leave alone")
    limit: float | None = option(None, "largest value")
    note: str | None = option(None, "any text")

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        return PassResult()


@dataclass(frozen=True)
class Needy(Pass):
    """Do nothing, but only when told how."""

    name: ClassVar[str] = "test-needy"

    rank: int

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        return PassResult()


for _cls in (Probe, Needy):
    del registry._REGISTRY[_cls.name]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", {c.name: c for c in (Probe, Needy)})


def test_reads_every_kind_of_value() -> None:
    text = (
        'test-probe{bits=4 sparsity=1e-1 per-channel pattern=2:4 method=minmax skip=[a.b,"c d"]\n'
        '  limit=3 note="say \\"hi\\" \\\\"} , test-needy { rank = 3 },test-probe'
    )
    assert parse_pipeline(text) == [
        Probe(4, 0.1, True, "2:4", "minmax", ("a.b", "c d"), 3.0, 'say "hi" \\'),
        Needy(3),
        Probe(),
    ]


def test_empty_pipeline_is_no_pass() -> None:
    assert parse_pipeline("  ") == []
    assert print_pipeline([]) == ""


def test_defaults_are_not_printed() -> None:
    assert print_pipeline([Probe(), Needy(1)]) == "test-probe,test-needy{rank=1}"
    assert print_pipeline([Probe(per_channel=True, bits=2)]) == "test-probe{bits=2 per-channel}"


def test_mixed_lists_and_text() -> None:
    assert as_passes(["test-probe{bits=3}", Needy(1), "test-probe,test-probe"]) == [
        Probe(bits=3),
        Needy(1),
        Probe(),
        Probe(),
    ]


@given(
    st.lists(
        st.builds(
            Probe,
            bits=st.integers(2, 16),
            sparsity=st.floats(0, 1),
            per_channel=st.booleans(),
            pattern=st.text(),
            method=st.sampled_from(["mse", "minmax"]),
            skip=st.lists(st.text()).map(tuple),
            limit=st.none() | st.floats(allow_nan=False),
            note=st.none() | st.text() | st.just("none"),
        )
    )
)
def test_text_round_trip(passes: list[Probe]) -> None:
    assert parse_pipeline(print_pipeline(passes)) == passes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("test-prob", ["no pass named 'test-prob'", "did you mean 'test-probe'", "column 1"]),
        ("test-probe,nonsense-zzz", ["column 12", "dlcc passes"]),
        ("test-probe{bit=4}", ["no option 'bit'", "bits, sparsity", "did you mean 'bits'"]),
        ("test-probe{bits=1}", ["bits=1", "from 2 to 16 (bits)", "width of a code", "column 12"]),
        ("test-probe{bits=4.5}", ["bits=4.5", "an integer"]),
        ("test-probe{bits}", ["bits=true"]),
        ('test-probe{bits="4"}', ["'4'", "an integer"]),
        ("test-probe{bits=[4]}", ["bits=[4]"]),
        ("test-probe{sparsity=nan}", ["sparsity=nan"]),
        ("test-probe{per-channel=yes}", ["true or false"]),
        ("test-probe{method=best}", ["one of mse, minmax"]),
        ("test-probe{bits=4 bits=5}", ["given twice"]),
        ("test-probe{bits=4", ["option or '}'", "the end"]),
        ("test-probe test-probe", ["expected ','", "column 12"]),
        ("test-probe,", ["name of a pass", "the end"]),
        ('test-probe{note="x}', ["quotes are not closed"]),
        ("test-probe{skip=[a b]}", ["',' or ']'"]),
        ("test-needy", ["needs option rank", "test-needy{rank=...}"]),
    ],
)
def test_mistakes_are_usage_errors(text: str, words: list[str]) -> None:
    with pytest.raises(DlccError) as caught:
        parse_pipeline(text)
    assert caught.value.code is ExitCode.USAGE
    for word in words:
        assert word in str(caught.value)


def test_python_values_are_checked_too() -> None:
    with pytest.raises(DlccError, match="bits=99"):
        Probe(bits=99)
    with pytest.raises(DlccError, match="skip"):
        Probe(skip=["a"])  # type: ignore[arg-type]
    with pytest.raises(DlccError, match="bits=true"):
        Probe(bits=True)


def test_description_comes_from_the_class() -> None:
    facts = describe(Probe)
    assert facts["summary"] == "Do nothing, with every kind of option."
    assert facts["description"] == "Body of the description."
    bits = facts["options"][0]
    assert bits["default"] == "8"
    assert bits["unit"] == "bits"
    assert describe(Needy)["options"][0]["required"] is True


def test_a_name_cannot_be_taken_twice() -> None:
    with pytest.raises(TypeError, match="is taken by"):
        type("Other", (Pass,), {"name": "test-probe", "__module__": "elsewhere"})


def test_unsupported_option_type_is_a_mistake_of_the_pass() -> None:
    @dataclass(frozen=True)
    class Strange(Pass):
        """Have an option no text can give."""

        name: ClassVar[str] = "test-strange"
        value: complex = option(0j, "nothing")

        def run(self, graph: Graph, context: PassContext) -> PassResult:
            return PassResult()

    with pytest.raises(TypeError, match="cannot be the type of an option"):
        Strange()
