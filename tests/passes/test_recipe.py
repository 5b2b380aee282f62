"""Recipes: TOML that becomes a pipeline for a network, and every way to get one wrong."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph
from passes import (
    Pass,
    PassContext,
    PassManager,
    PassResult,
    Recipe,
    base,
    option,
    parse_pipeline,
    print_pipeline,
)
from passes.names import named, names, near_misses
from passes.pipelines import OPTIMISE
from tests.passes.conftest import Net


@pytest.fixture
def graph(net: Net) -> Graph:
    x = net.op("relu", net.conv(net.input(1, 3, 8, 8), 8, loc="conv1"), loc="relu1")
    x = net.conv(net.conv(x, 8, loc="conv2"), 8, loc="conv3")
    flat = net.op("reshape", x, shape=(1, 32), loc="flat")
    x = net.op("softmax", net.linear(net.linear(flat, 32, loc="fc1"), 10, loc="fc2"), loc="soft")
    return net.done(x)


def pipeline(text: str, graph: Graph) -> str:
    return print_pipeline(Recipe.parse('before = ""\n' + text).passes(graph))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", ""),
        ("[quantize]\nbits = 6", "quantize{bits=6}"),
        ("[round-to-bfloat16]", "round-to-bfloat16"),
        ("[round-to-float16]", "round-to-float16"),
        (
            '[[layers]]\nmatch = "conv*"\nprune = { sparsity = 0.8, pattern = "2:4" }\n',
            None,
        ),
        (
            '[[layers]]\nmatch = "conv*"\nprune = { sparsity = 0.8 }\n'
            '[[layers]]\nmatch = ["fc1", "fc2"]\nprune.sparsity = 0.9\nprune.reconstruct = true\n',
            "prune{sparsity=0.8 only=[conv*]},prune{sparsity=0.9 reconstruct only=[fc1,fc2]}",
        ),
        (
            '[quantize]\n[[layers]]\nmatch = "fc2"\nquantize = false\n'
            '[[layers]]\nmatch = "fc*"\nquantize = { weights = 4, inputs = 6 }\n',
            "quantize{exclude=[fc2] weights=[fc1:4] inputs=[fc1:6]}",
        ),
        (
            '[quantize]\nweights = ["*:7"]\nexclude = "soft"\n'
            '[[layers]]\nmatch = "conv2"\nquantize.weights = 2\n'
            '[[layers]]\nmatch = "conv3"\nquantize = false\n',
            "quantize{exclude=[conv3,soft] weights=[conv2:2,*:7]}",
        ),
        (
            "[share-weights]\nvalues = 8\n[quantize]\n"
            '[[layers]]\nmatch = "fc*"\nshare-weights = { values = 32 }\nquantize = false\n'
            '[[layers]]\nmatch = "conv1"\nshare-weights = false\n',
            "share-weights{exclude=[fc*,conv1] values=8},share-weights{only=[fc*] values=32},"
            "quantize{exclude=[fc*]}",
        ),
        (
            '[[layers]]\nmatch = "conv2"\nternarize = true\n'
            '[[layers]]\nmatch = "conv*"\nprune = {sparsity=0.5}\nfactorize = {rank=3}\n',
            "factorize{rank=3 only=[conv1,conv3]},prune{sparsity=0.5 only=[conv1,conv3]},"
            "ternarize{only=[conv2]}",
        ),
        (
            '[[layers]]\nmatch = "conv2"\n[[layers]]\nmatch = "*"\nternarize = true\n',
            "ternarize{only=[conv1,conv3,fc1,fc2]}",
        ),
        ('[[layers]]\nmatch = "soft"\nquantize = false\n[quantize]', "quantize{exclude=[soft]}"),
    ],
)
def test_text_of_the_pipeline(graph: Graph, text: str, want: str | None) -> None:
    if want is None:
        with pytest.raises(DlccError, match="takes no sparsity"):
            pipeline(text, graph)
        return
    assert pipeline(text, graph) == want


def test_the_exact_passes_run_first(graph: Graph) -> None:
    assert print_pipeline(Recipe.parse("").passes(graph)) == OPTIMISE
    recipe = Recipe.parse('before = "fuse-epilogues"\n[quantize]')
    assert print_pipeline(recipe.passes(graph)) == "fuse-epilogues,quantize"


def test_the_text_reads_back_to_the_same_passes(graph: Graph) -> None:
    text = '[quantize]\n[[layers]]\nmatch="conv2"\nprune={sparsity=0.5}\nquantize={weights=3}'
    passes = Recipe.parse(text).passes(graph)
    assert parse_pipeline(print_pipeline(passes)) == passes


def test_names_with_brackets_are_taken_literally(net: Net) -> None:
    x = net.linear(net.linear(net.input(1, 8), 8, loc="a[0]"), 8, loc="a[1]")
    graph = net.done(net.linear(x, 8, loc="a0"))
    text = '[[layers]]\nmatch="a[[]0]"\n[[layers]]\nmatch="a*"\nternarize=true'
    recipe = Recipe.parse(text)
    PassManager(recipe.passes(graph)).run(graph, PassContext())
    kinds = [n.input(1).type.encoding.name for n in graph.nodes]
    assert kinds == ["dense", "ternary", "ternary"]


def test_factors_keep_the_name_of_their_layer(net: Net) -> None:
    x = net.linear(net.input(64, 256), 256, loc="a")
    graph = net.done(net.linear(x, 64, loc="a2"))
    text = (
        '[[layers]]\nmatch = "a"\nfactorize = { rank = 4, gain = 0 }\nternarize = true\n'
        '[quantize]\n[[layers]]\nmatch = "a2"\nquantize = false\n'
    )
    result = PassManager(Recipe.parse(text).passes(graph)).run(graph, PassContext())
    kinds = {n.loc: n.input(1).type.encoding.name for n in graph.nodes if len(n.inputs) > 1}
    assert kinds == {"a.reduce": "ternary", "a.expand": "ternary", "a2": "dense"}
    assert {r.loc: r.message for r in result.remarks}["a2"] == "excluded by option"


# -- mistakes ----------------------------------------------------------------------------------

PRUNE = "prune = { sparsity = 0.5 }"

MISTAKES = [
    ("a = = 1", "is not TOML", "line 1"),
    ("[quantise]", "no pass named 'quantise'", "did you mean 'quantize'"),
    ("[[layer]]\nmatch='a'", "no pass named 'layer'", "did you mean 'layers'"),
    ("quantize = 8", "no table of options", "write [quantize]"),
    ("before = 3", "no pipeline", "before"),
    ("before = 'prun'", "no pass named 'prun'", "line 1, before, pipeline, column 1"),
    ("[layers]\nmatch='a'", "must be entries", "line 1"),
    (f"[[layers]]\n{PRUNE}", "which layers it is for", "entry 1"),
    (f"[[layers]]\nmatch=[]\n{PRUNE}", "which layers it is for", "match must be"),
    (f"[[layers]]\nmatch=[3]\n{PRUNE}", "which layers it is for", "match must be"),
    ("\n[[layers]]\nmatch='conv*'\nmethod='prune'\nsparsity=0.5", "no key 'method'", "line 2"),
    ("[[layers]]\nmatch='conv*'\nprun={}", "no pass named 'prun'", "did you mean 'prune'"),
    ("[[layers]]\nmatch='conv*'\nprune=0.5", "neither options nor", "prune = {"),
    ("[[layers]]\nmatch='conv*'\nprune={sparsty=0.5}", "no option 'sparsty'", "'sparsity'"),
    ("[[layers]]\nmatch='conv*'\nprune={sparsity=1.5}", "sparsity=1.5 is not valid", "entry 1"),
    ("[[layers]]\nmatch='conv*'\nprune={sparsity='high'}", "sparsity=high is not", "a number"),
    ("[[layers]]\nmatch='conv*'\nprune={}", "one of sparsity, threshold", "entry 1"),
    (
        "[[layers]]\nmatch='conv*'\nprune={sparsity=0.5, only='conv1'}",
        "prune has only here",
        "match says",
    ),
    ("[[layers]]\nmatch='conv*'\nquantize=false", "does not run it", "add a table [quantize]"),
    ("[quantize]\n[[layers]]\nmatch='conv*'\nquantize=true", "says nothing", "weights, inputs"),
    (
        "[quantize]\n[[layers]]\nmatch='conv*'\nquantize={bits=4}",
        "no option 'bits' for single layers",
        "give bits in [quantize]",
    ),
    ("[quantize]\n[[layers]]\nmatch='conv*'\nquantize={weights=9}", "no width", "2 to 8"),
    ("[quantize]\n[[layers]]\nmatch='conv*'\nquantize={weights='x'}", "no integer", "weights = 4"),
    ("[quantize]\nbits=9", "bits=9 is not valid", "line 1, [quantize]"),
    ("[quantize]\n[assign-bitwidths]", "do not go together", "quantize = false"),
    (
        "[fold-pads]\n[[layers]]\nmatch='conv*'\nfold-pads=false",
        "cannot leave out layers",
        "leave out fold-pads",
    ),
    (
        "[[layers]]\nmatch='conv*'\nternarize=true\nbinarize=true",
        "ternarize and binarize do not go together",
        "binarize = false",
    ),
    (
        "[share-weights]\n[[layers]]\nmatch='conv*'\nternarize=true",
        "ternarize and share-weights do not go together",
        "share-weights = false",
    ),
    (f"[[layers]]\nmatch='convv1'\n{PRUNE}", "no layer matches 'convv1'", "did you mean 'conv1'"),
    (f"[[layers]]\nmatch='CONV*'\n{PRUNE}", "no layer matches 'CONV*'", "'conv1', 'conv2'"),
    (f"[[layers]]\nmatch='zzz'\n{PRUNE}", "no layer matches 'zzz'", "conv1, conv2, conv3, fc1"),
    (f"[[layers]]\nmatch='soft'\n{PRUNE}", "names none", "it names soft"),
    (
        f"[[layers]]\nmatch='c*'\n{PRUNE}\n[[layers]]\nmatch='conv1'\n{PRUNE}",
        "has no layer left",
        "conv1 belong to entry 1",
    ),
]


@pytest.mark.parametrize(("text", "what", "more"), MISTAKES, ids=[m[1] for m in MISTAKES])
def test_mistakes(graph: Graph, text: str, what: str, more: str) -> None:
    if not text.startswith("before"):
        text = 'before = ""\n' + text if "line" not in more else text
    with pytest.raises(DlccError) as caught:
        Recipe.parse(text, "r.toml").passes(graph)
    assert caught.value.code is ExitCode.USAGE
    assert "r.toml" in str(caught.value)
    assert what in caught.value.what
    assert more in str(caught.value)


def test_lines_of_tables(graph: Graph) -> None:
    text = '# a\n[quantize]\n\n[[layers]]\nmatch="conv1"\n\n[[layers]]\nmatch="nothing"\n'
    with pytest.raises(DlccError) as caught:
        Recipe.parse(text, "r.toml").passes(graph)
    assert caught.value.where == "r.toml, line 7, entry 2 of layers (match = nothing)"


def test_files(tmp_path: Path, graph: Graph) -> None:
    (tmp_path / "good.toml").write_text("[quantize]\n")
    assert Recipe.load(tmp_path / "good.toml").text == "[quantize]\n"
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    for name, why in [("bad.toml", "not UTF-8"), ("none.toml", "No such file"), ("", "directory")]:
        with pytest.raises(DlccError) as caught:
            Recipe.load(tmp_path / name)
        assert caught.value.code is ExitCode.INPUT_FILE
        assert why in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "loc", "want"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("a*", "ab", True),
        ("a", "a.reduce", True),
        ("a", "a.core_1", True),
        ("a", "a.core.reduce", True),
        ("a", "a.other", False),
        ("a.core", "a.core", True),
    ],
)
def test_names(pattern: str, loc: str, want: bool) -> None:
    assert names(pattern, loc) is want
    assert named([pattern, "x"], loc) is want


def test_near_misses() -> None:
    known = ["Conv_1", "conv_2", "fc", "/block/block.0/Conv"]
    assert near_misses("conv_1", known)[0] == "Conv_1"
    assert near_misses("block*", known) == ["/block/block.0/Conv"]
    assert near_misses("cnv_2", known) == ["conv_2", "Conv_1"]
    assert near_misses("zz", known) == []


def test_options_that_must_be_given(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    @dataclass(frozen=True)
    class Demanding(Pass):
        """Needs a number."""

        name: ClassVar[str] = "demanding"
        size: int = option(MISSING, "a number")

        def run(self, graph: Graph, context: PassContext) -> PassResult:
            return PassResult()

    with pytest.raises(DlccError) as caught:
        Recipe.parse("[demanding]")
    assert "needs option size" in caught.value.what
    recipe = Recipe.parse('before = ""\n[quantize]\n[demanding]\nsize = 3')
    assert recipe.passes(graph)[0] == Demanding(size=3)  # exact ones stand in front of lossy ones
