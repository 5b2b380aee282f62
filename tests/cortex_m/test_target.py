"""What the Cortex-M targets are, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

import dlcc
from dlcc.errors import DlccError, ExitCode
from dlcc.objects.elf import ElfFile
from targets import get_target
from targets.cortex_m import CORES
from tests.cortex_m.board import BOARDS, QEMU, run
from tests.cortex_m.networks import NETWORKS

DIGITS = "examples/digits/digits.onnx"


def test_a_core_has_no_variants():
    with pytest.raises(DlccError, match="no target 'cortex-m4:fast'") as error:
        get_target("cortex-m4:fast")
    assert error.value.code == ExitCode.TARGET


@pytest.mark.parametrize("core", CORES)
def test_no_such_core_is_this_machine(core):
    target = get_target(core)
    assert target.emits == ("a", "o")
    assert target.most_threads == 1


def test_what_firmware_cannot_have_is_refused(tmp_path):
    for changes, words in (
        ({"pack": "size"}, "no packed weights"),
        ({"emit": ("so",)}, "gives no so"),
        ({"threads": 2}, "no 2 threads"),
    ):
        with pytest.raises(DlccError, match=words):
            dlcc.compile(DIGITS, tmp_path / "no", target="cortex-m4", shapes={"N": 1}, **changes)
        assert not (tmp_path / "no").exists()


def test_a_library_needs_memory_functions_at_most(tmp_path):
    dlcc.compile(DIGITS, tmp_path / "a", target="cortex-m33", bits=8, emit=("o",), shapes={"N": 1})
    symbols = ElfFile((tmp_path / "a" / "digits.o").read_bytes()).symbols()
    open_ = {s.name for s in symbols if s.section == 0 and s.name}
    assert open_ <= {"memcpy", "memmove", "memset"}


@pytest.mark.skipif(QEMU is None, reason="no qemu-system-arm")
def test_a_float_network_runs(models_dir, tmp_path):
    model = models_dir / f"{NETWORKS['kws']}.onnx"
    made = dlcc.compile(model, tmp_path / "a", target="cortex-m4", bits=32, shapes={"N": 1})
    samples = np.random.default_rng(0).normal(size=(2, 1, 49, 10)).astype(np.float32)
    seen = run(BOARDS["cortex-m4"], tmp_path / "a", NETWORKS["kws"], samples, tmp_path / "w")
    reference = dlcc.execute(made.optimised.graph, {"input": samples[:1]})
    np.testing.assert_allclose(seen.outputs[:1].view(np.float32), reference["logits"], atol=1e-5)
