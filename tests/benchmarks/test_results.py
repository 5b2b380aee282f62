"""Ratios, merging and resuming of results, and the tables made of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.peers.catalogue import CONTENDERS, GOALS, NETWORKS, PRODUCTS
from benchmarks.peers.results import Cell, Group, Results, load_results, ratio
from benchmarks.peers.tables import duel, geometric_mean, is_right, markdown, report

GROUP = Group("lenet5", 1, True)


def cell(*milliseconds: float, run: str = "a", error: float = 0.01, foreign: float = 0.0) -> Cell:
    rounds = {
        f"{run}.{i}": {"p20": ms * 1e-3, "foreign": foreign} for i, ms in enumerate(milliseconds)
    }
    return Cell("", "v1", {"error": error}, rounds)


def test_ratio_is_the_median_of_common_rounds() -> None:
    ours, peer = cell(1.0, 2.0, 4.0), cell(3.0, 3.0, 4.0)
    assert ratio(peer, ours) == (pytest.approx(1.5), True)  # of 3, 1.5 and 1
    assert ratio(ours, peer) == (pytest.approx(1 / 1.5), True)


def test_ratio_without_common_rounds_is_marked() -> None:
    assert ratio(cell(3.0, 5.0, run="b"), cell(2.0)) == (pytest.approx(2.0), False)


def test_geometric_mean() -> None:
    assert geometric_mean([1.0, 2.0, 4.0]) == pytest.approx(2.0)
    assert geometric_mean([3.0]) == pytest.approx(3.0)
    assert math.isnan(geometric_mean([]))


def test_merge_keeps_times() -> None:
    results = Results({}, {GROUP: {"dlcc:int8": cell(1.0), "openvino:int8": cell(2.0)}})
    later = {"dlcc:int8": cell(0.5, run="b"), "openvino:int8": Cell("it crashed")}
    results.merge(Results({"cpu": "x"}, {GROUP: later}))
    assert results.cells[GROUP]["dlcc:int8"].seconds == pytest.approx(0.5e-3)
    assert results.cells[GROUP]["openvino:int8"].timed
    assert results.machine == {"cpu": "x"}


def test_file_holds_everything(tmp_path: Path) -> None:
    memory = [{"network": "lenet5", "precision": "int8", "threads": 1, "peak_kb": 7}]
    cells = {GROUP: {"dlcc:int8": cell(1.0)}, GROUP._replace(amx=False): {"x": Cell("no")}}
    Results({"cpu": "x"}, cells, memory).save(tmp_path / "a" / "r.json")
    Results({}, {GROUP: {"dlcc:int8": cell(3.0, run="b")}}).save(tmp_path / "b.json")
    one = load_results([tmp_path / "a" / "r.json"])
    assert (one.cells, one.memory) == (cells, memory)
    both = load_results([tmp_path / "a" / "r.json", tmp_path / "b.json"])
    assert both.cells[GROUP]["dlcc:int8"].seconds == pytest.approx(3e-3)
    assert len(both.cells) == 2
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match=r"c\.json is not"):
        load_results([tmp_path / "c.json"])


def test_memory_of_the_same_place_is_replaced() -> None:
    def entry(network: str, peak: int) -> dict[str, object]:
        return {"network": network, "precision": "int8", "threads": 1, "peak_kb": peak}

    results = Results(memory=[entry("lenet5", 1), entry("ad_ae", 2)])
    results.merge(Results(memory=[entry("lenet5", 3)]))
    assert sorted(e["peak_kb"] for e in results.memory) == [2, 3]


def test_group_is_complete_with_the_same_artifact() -> None:
    results = Results({}, {GROUP: {"dlcc:int8": cell(1.0), "litert:int8": Cell("no wheel")}})
    assert results.complete(GROUP, {"dlcc:int8": "v1", "litert:int8": ""})
    assert not results.complete(GROUP, {"dlcc:int8": "v2"})
    assert not results.complete(GROUP, {"openvino:int8": ""})
    assert not results.complete(GROUP._replace(threads=2), {"dlcc:int8": ""})


def test_best_peer_by_precision() -> None:
    row = {
        "dlcc:int8": cell(1.0),
        "dlcc:fp32": cell(4.0),
        "openvino:bf16": cell(3.0),
        "openvino:int8": cell(3.5),
        "litert:fp32": cell(8.0),
        "onnxruntime:fp32": cell(6.0),
    }
    int8 = duel("lenet5", row, "int8")
    assert (int8.peer, int8.ratio, int8.goal, int8.met) == ("openvino:bf16", 3.0, 3.0, True)
    fp32 = duel("lenet5", row, "fp32")
    assert (fp32.peer, fp32.ratio, fp32.goal) == ("onnxruntime:fp32", 1.5, 1.0)


def test_wrong_results_win_nothing() -> None:
    row = {
        "dlcc:int8": cell(1.0),
        "openvino:int8": cell(0.1, error=2.0),
        "litert:int8": cell(0.2, error=math.nan),
        "onnxruntime:int8": cell(2.0),
    }
    assert duel("vgg16", row, "int8").peer == "onnxruntime:int8"
    row["dlcc:int8"] = cell(1.0, error=2.0)
    found = duel("vgg16", row, "int8")
    assert math.isnan(found.ratio)
    assert not found.met


def test_network_on_which_everybody_is_far_off() -> None:
    errors = {"dlcc": 0.8, "openvino": 0.6, "litert": 1.1, "onnxruntime": 0.5, "deepsparse": 9.0}
    row = {f"{name}:int8": cell(1.0, error=error) for name, error in errors.items()}
    row["litert:fp32"] = cell(1.0, error=0.6)  # judged among fp32 alone
    right = {name for name in row if is_right(row, name)}
    assert right == {"dlcc:int8", "openvino:int8", "litert:int8", "onnxruntime:int8"}


def test_nobody_to_compare_with() -> None:
    found = duel("vgg16", {"dlcc:int8": cell(1.0)}, "int8")
    assert (found.peer, found.met) == ("", False)
    assert not duel("vgg16", {"openvino:int8": cell(1.0)}, "int8").met


def test_report() -> None:
    machine = {"cpu": "CPU", "cpus": 2, "features": ["avx2"], "system": "Linux", "date": "today"}
    fast = {"dlcc:int8": cell(1.0), "openvino:int8": cell(4.0)}
    slow = {"dlcc:int8": cell(2.0, foreign=0.9), "openvino:int8": cell(1.0, run="b")}
    slow["deepsparse:int8"] = Cell("no wheel | for this Python")
    cells = {GROUP: fast, Group("vgg16", 1, True): slow, GROUP._replace(amx=False): fast}
    memory = {"network": "lenet5", "precision": "int8", "threads": 1}
    memory |= {"weights_kb": 60, "arena_kb": 10, "border_kb": 4, "peak_kb": 9000}
    text = report(Results(machine, cells, [memory]), [1, 2], [True, False])
    rows = [line for line in text.splitlines() if line.startswith(("| lenet5", "| vgg16"))]
    assert rows[0] == (
        "| vgg16 | openvino:int8 | 1 | 1.0e-02 | 2* | 1.0e-02 | 0.50~ | 1.1 | **missed** |"
    )
    assert rows[1] == "| lenet5 | openvino:int8 | 4 | 1.0e-02 | 1 | 1.0e-02 | 4.00 | 3 | met |"
    assert "Geometric mean over 2 networks: 1.41 (goal 1.5: **missed**). Goals met: 1 of 2." in text
    assert "| vgg16 1T | deepsparse:int8 | no wheel / for this Python |" in text
    assert "### dlcc int8, 1 thread, AMX hidden from all engines" in text
    assert "| lenet5 | int8 | 1 | 60 | 10 | 4 | 9000 | 3070 | **missed** |" in text
    assert "dlcc fp32" not in text
    assert "2 threads" not in text


def test_markdown() -> None:
    assert markdown(("a", ">b"), [("x", "1|2")]) == "| a | b |\n| --- | ---: |\n| x | 1/2 |"


def test_catalogue_is_whole() -> None:
    assert set(GOALS) == set(NETWORKS)
    assert len(NETWORKS) == 13
    order = list(PRODUCTS)
    for product in PRODUCTS.values():
        assert not product.needs or order.index(product.needs) < order.index(product.pattern)
    for contender in CONTENDERS.values():
        assert contender.ours or contender.product in PRODUCTS
