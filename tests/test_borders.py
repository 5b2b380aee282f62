"""Codes at the borders of a compiled network, by options of `dlcc compile`."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import dlcc
from dlcc.cli.app import run_command_line
from dlcc.driver import CompileOptions, optimise
from dlcc.errors import DlccError

DIGITS = "examples/digits/digits.onnx"


@pytest.fixture(scope="module")
def images():
    """Images as the network takes them, and labels of none."""
    rng = np.random.default_rng(2)
    return rng.integers(0, 17, (12, 1, 8, 8)).astype(np.float32) / 16


def test_codes_at_both_borders(images, tmp_path, capsys):
    data = str(tmp_path / "data.npz")
    np.savez(data, image=images)
    command = ["compile", DIGITS, "-o", str(tmp_path / "codes"), "--shape", "N=1", "--calib", data]
    borders = ["--integer-inputs", "--integer-outputs"]
    assert run_command_line([*command, *borders, "--threads", "1", "-q"]) == 0
    manifest = json.loads((tmp_path / "codes" / "manifest.json").read_text())
    (given,), (taken,) = manifest["inputs"], manifest["outputs"]
    assert (given["dtype"], taken["dtype"]) == ("uint8", "uint8")
    header = (tmp_path / "codes" / "digits.h").read_text()
    for kind, tensor in (("INPUT", given), ("OUTPUT", taken)):
        (scale,) = re.findall(rf"#define DIGITS_{kind}_0_SCALE (\S+)f\n", header)
        (zero,) = re.findall(rf"#define DIGITS_{kind}_0_ZERO_POINT \((.+)\)", header)
        assert np.float32(scale) == np.float32(tensor["scale"])
        assert int(zero) == tensor["zero_point"]
    codes = np.rint(images / np.float32(given["scale"])) + given["zero_point"]
    example = (tmp_path / "codes" / "example_data.h").read_text()
    (body,) = re.findall(r"recorded_input_0\[.*?\] = \{(.*?)\};", example, re.DOTALL)
    assert [int(n) for n in body.replace(",", " ").split()] == codes[0].reshape(-1).tolist()

    options = CompileOptions(calibration=data, shapes={"N": 1})
    graph = optimise(DIGITS, options).graph
    wanted = [dlcc.execute(graph, {"image": image[None]})["logits"] for image in images]
    with dlcc.load(tmp_path / "codes") as network:
        for code, logits in zip(codes.astype(np.uint8), wanted, strict=True):
            out = np.asarray(network(code[None]), np.float32)
            error = (out - taken["zero_point"]) * taken["scale"] - logits
            assert np.abs(error).max() < 1.01 * taken["scale"]

    # data of real numbers becomes codes
    np.savez(data, image=images, labels=np.argmax(wanted, axis=-1).reshape(-1))
    capsys.readouterr()
    assert run_command_line(["eval", str(tmp_path / "codes"), "--data", data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] > 0.9


def test_calibration_data_is_turned_as_the_caller_gives_images(images):
    options = CompileOptions(
        calibration=lambda: iter({"image": image[None]} for image in images),
        integer_inputs=True,
        nhwc=True,
        shapes={"N": 1},
    )
    made = optimise(DIGITS, options)
    assert made.graph.inputs[0].type.shape == (1, 8, 8, 1)
    assert made.pipeline.endswith("quantize,integer-inputs{nhwc}")
    assert made.calibration is not None
    np.testing.assert_array_equal(next(iter(made.calibration()))["image"][0, ..., 0], images[0, 0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nhwc": True}, "nothing says what is to have its channels last"),
        ({"bits": 32, "integer_inputs": True}, "no input takes codes.*not only quantised"),
        (
            {"passes": "quantize", "integer_outputs": True},
            r"no output gives codes.*not made of codes.*quantize\{outputs=true\}",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes, words, tmp_path):
    with pytest.raises(DlccError) as error:
        dlcc.compile(DIGITS, tmp_path / "no", shapes={"N": 1}, **changes)
    assert re.search(words, str(error.value), re.DOTALL)
    assert not (tmp_path / "no").exists()
