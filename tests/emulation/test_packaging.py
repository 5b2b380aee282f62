"""An artifact's example program gives the recorded output on every machine, in every form."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.ir import Graph, TensorType
from dlcc.objects.elf import ElfFile
from dlcc.ops.base import build
from tests.emulation.machine import ARMV7, CORTEX_A72, Machine
from tests.runtime.programs import zig, zig_cc
from tests.test_end_to_end import conv, feed_for

STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Wconversion", "-Werror")
CORTEX_M = replace(ARMV7, zig=("-target", "arm-linux-musleabihf", "-mcpu=cortex_a15", "-static"))
"""Runs what a Cortex-M4 runs: its instructions are some of ARMv7-A's."""


def network() -> Graph:
    """A convolution, a depthwise one, and a classifier."""
    graph = Graph("images")
    x = graph.add_input("image", TensorType((1, 3, 9, 9)))
    value = conv(graph, x, 8, loc="stem", pads=(1, 1, 1, 1), strides=(2, 2))
    value = build(graph, "relu", [value], loc="relu").output
    value = conv(graph, value, 8, loc="dw", groups=8, pads=(1, 1, 1, 1))
    value = build(graph, "reduce_mean", [value], {"axes": (2, 3), "keepdims": False}).output
    weight = np.random.default_rng(5).standard_normal((5, 8)).astype(np.float32)
    scores = build(graph, "linear", [value, graph.add_constant(weight, name="fc")], loc="fc")
    graph.set_outputs([scores.output], ["scores"])
    return graph


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    feeds = [feed_for(network(), seed) for seed in range(8)]
    np.savez(path, image=np.concatenate([feed["image"] for feed in feeds]))
    return path


@pytest.mark.parametrize(
    ("machine", "target", "kind"),
    [
        pytest.param(CORTEX_A72, "arm:cortex-a72", "so", marks=CORTEX_A72.missing),
        pytest.param(ARMV7, "armv7", "a", marks=ARMV7.missing),
        pytest.param(CORTEX_M, "cortex-m4", "a", marks=CORTEX_M.missing),
    ],
)
def test_example_on_other_machines(
    machine: Machine, target: str, kind: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = dlcc.compile(
        network(), out, bits=8, target=target, emit=(kind,), name="net", calibration=data
    )
    libraries = [out / f"libnet.{kind}", f"-Wl,-rpath,{out}"]
    bare = target.startswith("cortex-m")
    libraries += [] if bare else ["-lpthread"]
    zig("cc", *machine.zig, *STRICT, out / "example.c", *libraries, "-o", tmp_path / "example")
    arguments = [] if bare else [out / "net.weights"]
    told = machine.run(tmp_path / "example", *arguments).decode()
    assert told.endswith("ok\n")
    assert "check_bytes" in (out / "example.c").read_text()
    page = (out / "INTEGRATION.md").read_text()
    assert result.program.triple in page
    assert "the first sample of images.npz" in page
    assert ("arm-none-eabi-gcc -mthumb -march=armv7e-m+fp" in page) is bare


def test_c_source(data: Path, tmp_path: Path) -> None:
    """With the command of its page, as C++ beside C, and by CMake."""
    out = tmp_path / "out"
    options = {"bits": 8, "target": "c", "emit": ("c",), "name": "net", "calibration": data}
    dlcc.compile(network(), out, **options)
    zig_cc(*STRICT, out / "example.c", out / "net.c", "-o", tmp_path / "example")
    done = subprocess.run([tmp_path / "example"], capture_output=True, text=True)
    assert done.stdout.endswith("ok\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "cc example.c net.c -o example\n" in (out / "INTEGRATION.md").read_text()
    assert not (out / "net.pc").exists()
    flags = ["-x", "c++", "-std=c++98", "-Wextra", "-pedantic", "-Wno-c++11-long-long", "-c"]
    zig_cc(*flags, out / "example.c", "-o", tmp_path / "example.o")
    cmake = shutil.which("cmake")
    if cmake is None or shutil.which("cc") is None:
        pytest.skip("no cmake")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(consumer C)\n"
        "find_package(net CONFIG REQUIRED)\nfind_package(net CONFIG REQUIRED)\n"
        'add_executable(consumer "${net_DIR}/example.c")\n'
        "target_link_libraries(consumer PRIVATE net::net)\n"
    )
    folder = tmp_path / "build"
    for command in ([cmake, "-S", tmp_path, "-B", folder, f"-Dnet_DIR={out}"], ["--build", folder]):
        arguments = command if command[0] == cmake else [cmake, *command]
        made = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ})
        assert made.returncode == 0, made.stdout + made.stderr
    done = subprocess.run([folder / "consumer"], capture_output=True, text=True)
    assert done.stdout.endswith("ok\n")


def test_one_network_twice_as_c_source_in_one_program(data: Path, tmp_path: Path) -> None:
    objects = []
    for name in ("left", "right"):
        out = tmp_path / name
        options = {"bits": 8, "target": "c", "emit": ("c",), "name": name, "calibration": data}
        dlcc.compile(network(), out, **options)
        source = (out / "example.c").read_text().replace("int main(void)", f"int {name}_main(void)")
        (out / "example.c").write_text(f"int {name}_main(void);\n{source}")
        for file in ("example", name):
            zig_cc(*STRICT, "-c", out / f"{file}.c", "-o", out / f"{file}.o")
            objects.append(out / f"{file}.o")
        symbols = ElfFile((out / f"{name}.o").read_bytes()).symbols()
        shared = {s.name for s in symbols if s.is_global and s.section}
        assert f"{name}_run" in shared
        assert {s for s in shared if not s.startswith(f"{name}_")} == set()
    (tmp_path / "main.c").write_text(
        "int left_main(void);\nint right_main(void);\n"
        "int main(void) { return left_main() || right_main(); }\n"
    )
    zig_cc(tmp_path / "main.c", *objects, "-o", tmp_path / "main")
    done = subprocess.run([tmp_path / "main"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("ok\n")) == (0, 2)
