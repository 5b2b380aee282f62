"""The runtime under gcc's sanitizers, compiled from source together with the model file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dlcc.artifact.csource import header_source, model_source, runtime_source
from dlcc.artifact.runtime import RuntimeKind
from dlcc.artifact.weights import weights_image
from dlcc.program import Program
from tests.runtime.programs import HERE, RUNTIME, chain_program


def _sources(program: Program, folder: Path) -> None:
    image = weights_image(program.weights, 5)
    kernels = {step.function: step.function for step in program.steps}
    source = model_source(
        program, "chain", kernels, fingerprint=5, weights_bytes=len(image), embed=False
    )
    (folder / "chain.h").write_text(header_source(program, "chain"))
    (folder / "model.c").write_text(source)
    kind = RuntimeKind(embedded=False, packed=False, parts=False, single=False)
    (folder / "runtime.c").write_text(runtime_source("chain", kind.defines)[1])
    (folder / "chain.weights").write_bytes(image)


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_stress(sanitizer: str, kernels: bytes, tmp_path: Path) -> None:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc")
    _sources(chain_program(kernels, steps=60), tmp_path)
    command = [gcc, "-std=gnu11", "-O1", "-g", f"-fsanitize={sanitizer}", "-Wall", "-Wextra"]
    command += ["-Werror", "-I", str(RUNTIME), "-I", str(tmp_path), str(tmp_path / "model.c")]
    command += [str(tmp_path / "runtime.c")]
    command += [str(HERE / "kernels.c"), str(HERE / "stress.c"), "-D_GNU_SOURCE", "-pthread"]
    built = subprocess.run([*command, "-o", str(tmp_path / "stress")], capture_output=True)
    if b"cannot find" in built.stderr:
        pytest.skip(f"gcc has no {sanitizer} sanitizer")
    assert built.returncode == 0, built.stderr.decode()
    done = subprocess.run(
        [str(tmp_path / "stress")], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the sanitizer cannot work with this kernel's address layout")
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)
