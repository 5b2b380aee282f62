"""NETWORK.int8.tflite from NETWORK.json and NETWORK.npz; runs in LiteRT's own environment.

Static quantisation to 8 bits, weights and activations, channels last, by LiteRT's converter and
quantiser.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert import interpreter
from ai_edge_quantizer import quantizer, recipe
from torch import Tensor, nn
from torch.nn import functional as fn

SAMPLES = 8


class Network(nn.Module):
    """The layers of a description, one after the other."""

    def __init__(self, told: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.told = told
        self.plain = {name: arrays[i] for i, name in told["constants"].items()}
        self.places = {name: f"constant{i}" for i, name in told["constants"].items()}
        for name, array in self.plain.items():
            if array.dtype == np.float32:
                self.register_buffer(self.places[name], torch.tensor(array))

    def constant(self, name: str) -> Tensor:
        return getattr(self, self.places[name])

    def forward(self, x: Tensor) -> Tensor:
        values = {self.told["input"]: x}
        for layer in self.told["layers"]:
            compute = getattr(self, f"op_{layer['op'].lower()}")
            values[layer["output"]] = compute(values, layer["inputs"], layer["attributes"])
        return values[self.told["output"]]

    def op_conv(self, values: dict[str, Tensor], names: list[str], told: dict[str, Any]) -> Tensor:
        x, (top, left, bottom, right) = values[names[0]], told["pads"]
        pads: tuple[int, int] = (top, left)
        if (top, left) != (bottom, right):
            x, pads = fn.pad(x, (left, right, top, bottom)), (0, 0)
        weight, bias = self.constant(names[1]), self.constant(names[2])
        steps = told["strides"], pads, told["dilations"], told["group"]
        return fn.conv2d(x, weight, bias, *steps)

    def op_clip(self, values: dict[str, Tensor], names: list[str], _: dict[str, Any]) -> Tensor:
        if len(names) != 2 or self.plain[names[1]] != 0:
            raise ValueError("a Clip that is no ReLU")
        return fn.relu(values[names[0]])

    def op_add(self, values: dict[str, Tensor], names: list[str], _: dict[str, Any]) -> Tensor:
        return values[names[0]] + values[names[1]]

    def op_slice(self, values: dict[str, Tensor], names: list[str], _: dict[str, Any]) -> Tensor:
        y = values[names[0]]
        starts, ends, axes, steps = (self.plain[name].tolist() for name in names[1:])
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            index = [slice(None)] * y.ndim
            index[axis] = slice(start, min(end, y.shape[axis]), step)
            y = y[tuple(index)]
        return y

    def op_pad(self, values: dict[str, Tensor], names: list[str], _: dict[str, Any]) -> Tensor:
        pads = self.plain[names[1]].tolist()
        rank = len(pads) // 2
        ends = [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
        return fn.pad(values[names[0]], ends)

    def op_reducemean(
        self, values: dict[str, Tensor], names: list[str], told: dict[str, Any]
    ) -> Tensor:
        return values[names[0]].mean(told["axes"], keepdim=bool(told["keepdims"]))

    def op_reshape(self, values: dict[str, Tensor], names: list[str], _: dict[str, Any]) -> Tensor:
        return values[names[0]].reshape(self.plain[names[1]].tolist())

    def op_gemm(self, values: dict[str, Tensor], names: list[str], told: dict[str, Any]) -> Tensor:
        if not told.get("transB"):
            raise ValueError("a Gemm whose weights are not transposed")
        return fn.linear(values[names[0]], self.constant(names[1]), self.constant(names[2]))

    def op_maxpool(
        self, values: dict[str, Tensor], names: list[str], told: dict[str, Any]
    ) -> Tensor:
        if any(told["pads"]):
            raise ValueError("a MaxPool with pads")
        return fn.max_pool2d(values[names[0]], told["kernel_shape"], told["strides"])


def make(folder: Path, network: str) -> None:
    """Converts, quantises, and compares with the float network on one sample."""
    told = json.loads((folder / f"{network}.json").read_text())
    with np.load(folder / f"{network}.npz") as arrays:
        module: nn.Module = Network(told, dict(arrays)).eval()
    generator = torch.Generator().manual_seed(0)
    samples = told["scale"] * torch.rand(SAMPLES, *told["shape"], generator=generator)
    want = module(samples[0]).detach().numpy()
    if samples.ndim == 5:
        module = litert_torch.to_channel_last_io(module, args=[0])
        samples = samples.permute(0, 1, 3, 4, 2).contiguous()
    plain, output = str(folder / f"{network}.tflite"), str(folder / f"{network}.int8.tflite")
    litert_torch.convert(module, (samples[0],)).export(plain)
    signatures = interpreter.Interpreter(plain).get_signature_list()
    key = next(iter(signatures))
    (name,) = signatures[key]["inputs"]
    work = quantizer.Quantizer(plain)
    work.load_quantization_recipe(recipe.static_wi8_ai8())
    ranges = work.calibrate({key: [{name: sample.numpy()} for sample in samples]})
    work.quantize(ranges).export_model(output)
    print(f"largest output {np.abs(want).max():.3g}, error {_error(output, samples[0], want):.3g}")


def _error(model: str, sample: Tensor, want: np.ndarray) -> float:
    litert = interpreter.Interpreter(model)
    litert.allocate_tensors()
    border, end = litert.get_input_details()[0], litert.get_output_details()[0]
    scale, zero = border["quantization"]
    codes = np.clip(np.round(sample.numpy() / scale + zero), -128, 127).astype(np.int8)
    litert.set_tensor(border["index"], codes)
    litert.invoke()
    scale, zero = end["quantization"]
    return float(
        np.abs((litert.get_tensor(end["index"]).astype(np.float32) - zero) * scale - want).max()
    )


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2])
