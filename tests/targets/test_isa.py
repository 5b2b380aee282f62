"""Instruction-set levels and their detection from /proc/cpuinfo."""

from __future__ import annotations

import pytest

from dlcc.errors import DlccError, ExitCode
from targets.cpu.levels import AMX, AVX512VNNI, AVXVNNI, LEVELS, detect
from targets.isa import host_flags, supports


@pytest.mark.parametrize("name", LEVELS)
def test_detect_finds_each_level(tmp_path, name):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: fpu {' '.join(LEVELS[name].flags)}\n")
    assert detect(str(path)).name == name


def test_detect_refuses_unknown_machines(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("Features\t: fp asimd\n")
    for where in (path, tmp_path / "missing"):
        with pytest.raises(DlccError) as caught:
            detect(str(where))
        assert caught.value.code == ExitCode.TARGET
    assert host_flags(str(tmp_path / "missing")) == frozenset()


def test_long_vectors_are_a_feature(tmp_path):
    path, length = tmp_path / "cpuinfo", tmp_path / "length"
    path.write_text("Features\t: asimd sve i8mm\n")
    for size, known in ((16, False), (32, True), (64, True)):
        length.write_text(f"{size}\n")
        made = host_flags.__wrapped__(str(path), str(length))
        assert ("sve256" in made) == known
    assert "sve256" not in host_flags(str(path), str(tmp_path / "missing"))
    path.write_text("Features\t: asimd i8mm\n")
    assert "sve256" not in host_flags.__wrapped__(str(path), str(length))


def test_levels_below_amx():
    below = AMX.without_amx()
    assert below.dot == AVX512VNNI.dot
    assert set(AVX512VNNI.flags) < set(below.flags) < set(AMX.flags)
    assert below.byte_permute
    assert not AVX512VNNI.byte_permute
    assert AVXVNNI.without_amx() is AVXVNNI
    assert supports(AVX512VNNI, frozenset(AMX.flags))
    assert not supports(AMX, frozenset(AVX512VNNI.flags))


def test_targets_tell_passes_which_blocks_suit_them() -> None:
    from targets import get_target

    facts = {name: get_target(f"cpu:{name}").facts for name in ("sse4", "avx2", "avx512", "amx")}
    assert [f["sparse_rows"] for f in facts.values()] == [4, 8, 16, 32]
    assert {f["sparse_columns"] for f in facts.values()} == {4}
    assert [f["channel_multiple"] for f in facts.values()] == [4, 8, 16, 16]
