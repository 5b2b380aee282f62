"""What a plan's kernels are to a GPU: their instructions, within the architecture's limits."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

from dlcc.codegen import device_source
from dlcc.cuda.architecture import MOST_THREADS, Architecture
from dlcc.cuda.cubin import read_cubin
from dlcc.cuda.nvrtc import compile_cubin
from dlcc.lowering.kernel import KernelPlan
from tests.cuda.test_grid_code import disassembler


def machine_code(plan: KernelPlan, architecture: str) -> list[Counter[str]]:
    """For each step how often it has which instruction; none may keep numbers out of registers."""
    limits = Architecture.named(architecture)
    assert limits is not None
    made = []
    for step in plan.steps:
        cubin = compile_cubin(device_source({step.name_key: step.build()}), architecture)
        kernel, launch = read_cubin(cubin).kernels[step.name_key], step.launch
        assert launch is not None
        threads = prod(launch.block)
        assert threads <= min(MOST_THREADS, kernel.max_threads)
        assert threads * kernel.registers <= 65536
        assert launch.shared_bytes + kernel.shared_bytes <= limits.shared_bytes
        assert kernel.local_bytes == 0
        with TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(cubin)
            command = [str(disassembler()), "-c", str(path)]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        names = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ )?([A-Z][\w.]+)", text, re.M)
        assert not any(name.startswith(("LDL", "STL")) for name in names)
        made.append(Counter(names))
    return made


def assert_has(found: Counter[str], *wanted: str) -> None:
    """There are instructions whose names begin so."""
    for name in wanted:
        assert any(known.startswith(name) for known in found), (name, found.most_common())
