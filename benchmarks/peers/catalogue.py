"""What is compared: networks, engines, where their models come from, and the goals."""

from __future__ import annotations

from dataclasses import dataclass

NETWORKS = (
    *("lenet5", "resnet8", "mbv1_025", "dscnn", "ad_ae"),
    *("squeezenet11", "mbv2", "efflite0", "minilm6"),
    *("resnet18", "resnet50", "vgg16", "alexnet"),
)

GOALS = {
    **dict.fromkeys(NETWORKS[:5], 3.0),
    **dict.fromkeys(NETWORKS[5:9], 1.5),
    **dict.fromkeys(NETWORKS[9:], 1.1),
}
"""int8: how many times as long as dlcc the best peer of any precision is to take."""
GOAL_MEAN = 1.5
"""The same for the geometric mean over the networks."""
FP32_GOAL, FP32_GOAL_MEAN = 1.0, 1.1
"""fp32: the same against the best fp32 peer."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own.

    Attributes:
        name: its folder is ``venv-NAME``.
        requirements: what pip installs.
        before: what pip installs first, in a run of its own.
    """

    name: str
    requirements: tuple[str, ...]
    before: tuple[str, ...] = ()


ENVIRONMENTS = {
    e.name: e
    for e in (
        Environment("torch", ("torch==2.13.0", "numpy", "onnx==1.23.2")),
        Environment("ort", ("onnxruntime==1.31.1", "onnx==1.23.2", "numpy")),
        Environment("ov", ("openvino==2026.4.1", "nncf==3.4.0", "onnx==1.23.2")),
        Environment("lt", ("litert-torch==0.10.0", "ai-edge-quantizer==0.10.0", "torch==2.13.0")),
        Environment("litert", ("ai-edge-litert==2.3.0", "numpy")),
        # its metadata is of a kind that later versions of pip refuse
        Environment("ds18", ("deepsparse==1.8.0",), before=("pip<26",)),
    )
}


@dataclass(frozen=True)
class Product:
    """A model file that a module of :mod:`benchmarks.peers.prepare` makes.

    Attributes:
        pattern: its name, with ``{}`` for the network.
        module: of :mod:`benchmarks.peers.prepare`.
        environment: where the module runs.
        needs: pattern of the product it is made from.
    """

    pattern: str
    module: str
    environment: str
    needs: str = ""


SOURCE = "{}.onnx"
BATCHES, HALF = "{}.batches.onnx", "{}.batches.fp16.onnx"
"""A network with a batch of any size, and the same in float16."""
PRODUCTS = {
    p.pattern: p
    for p in (
        Product(SOURCE, "onnx_networks", "torch"),
        Product("{}.int8.onnx", "onnxruntime_int8", "ort", SOURCE),
        Product("{}.ov8.xml", "openvino_int8", "ov", SOURCE),
        Product("{}.tflite", "litert", "lt", SOURCE),
        Product("{}.int8.tflite", "litert_int8", "lt", "{}.tflite"),
        Product("{}.int8ds.onnx", "deepsparse_int8", "ds18", "{}.int8.onnx"),
        Product(BATCHES, "onnx_batches", "torch", SOURCE),
        Product(HALF, "onnx_half", "ort", BATCHES),
    )
}


@dataclass(frozen=True)
class Contender:
    """An engine at a precision.

    Attributes:
        engine: module of :mod:`benchmarks.peers.engines`.
        precision: "fp32", "bf16" or "int8".
        environment: of :data:`ENVIRONMENTS`; "" for the interpreter that runs dlcc.
        product: pattern of the model it runs; "" for artifacts of dlcc.
        package: where the engine's module lies.
    """

    engine: str
    precision: str
    environment: str = ""
    product: str = ""
    package: str = "benchmarks.peers.engines"

    @property
    def name(self) -> str:
        """As the command line has it, e.g. ``openvino:int8``."""
        return f"{self.engine}:{self.precision}"

    @property
    def module(self) -> str:
        """The engine's module."""
        return f"{self.package}.{self.engine}"

    @property
    def ours(self) -> bool:
        """Whether it is dlcc."""
        return self.engine == "dlcc"


CONTENDERS = {
    c.name: c
    for c in (
        Contender("dlcc", "int8"),
        Contender("dlcc", "fp32"),
        Contender("dlcc", "bf16"),
        Contender("onnxruntime", "fp32", "ort", SOURCE),
        Contender("onnxruntime", "int8", "ort", "{}.int8.onnx"),
        Contender("openvino", "fp32", "ov", SOURCE),
        Contender("openvino", "bf16", "ov", SOURCE),
        Contender("openvino", "int8", "ov", "{}.ov8.xml"),
        Contender("litert", "fp32", "litert", "{}.tflite"),
        Contender("litert", "int8", "litert", "{}.int8.tflite"),
        Contender("deepsparse", "fp32", "ds18", SOURCE),
        Contender("deepsparse", "int8", "ds18", "{}.int8ds.onnx"),
    )
}
