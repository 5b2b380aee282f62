"""The runtime is compiled once in a process; what networks have of their own is compiled anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlcc.artifact import runtime, write_artifact
from dlcc.artifact.toolchain import Toolchain
from dlcc.objects import read_object, rename_symbols
from tests.runtime.programs import renamed, row_program

TRIPLE = "x86_64-unknown-linux-gnu"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the compiler is asked for from here on."""
    sources: list[str] = []
    real = Toolchain.compile

    def compile(self: Toolchain, source: str, output: str, *, include: Path) -> None:
        sources.append(source)
        real(self, source, output, include=include)

    monkeypatch.setattr(Toolchain, "compile", compile)
    return sources


def test_a_second_network_uses_the_same_runtime(
    kernels: bytes, tmp_path: Path, compiled: list[str]
) -> None:
    program = row_program(kernels)
    write_artifact(program, tmp_path / "first", emit=["a", "o", "so"])
    before = len(compiled)
    write_artifact(renamed(program, "other"), tmp_path / "other")
    write_artifact(program, tmp_path / "again", emit=["a", "o", "so"])
    assert compiled[before:] == ["model.c", "model.c"]
    runtime._compiled.cache_clear()
    write_artifact(program, tmp_path / "afresh", emit=["a", "o", "so"])
    files = {p.name: p.read_bytes() for p in (tmp_path / "first").iterdir()}
    for folder in ("again", "afresh"):
        assert {p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} == files


def test_each_kind_is_compiled_for_itself(compiled: list[str]) -> None:
    runtime._compiled.cache_clear()
    plain = dict.fromkeys(("embedded", "packed", "parts", "single"), False)
    made = {
        runtime.runtime_object(runtime.RuntimeKind(**{**plain, **more}), "net", TRIPLE)
        for more in ({}, {"embedded": True}, {"packed": True}, {"parts": True}, {"single": True})
    }
    assert len(made) == 5
    assert compiled == ["runtime.c"] * 5


def test_all_names_of_the_runtime_are_the_networks() -> None:
    kind = runtime.RuntimeKind(embedded=True, packed=True, parts=False, single=False)
    for code in (
        runtime.runtime_object(kind, "net", TRIPLE),
        runtime.unpack_object("net", TRIPLE),
    ):
        symbols = [s for s in read_object(code).symbols() if s.is_global]
        assert any(s.name.startswith("net_") for s in symbols)
        assert not [s.name for s in symbols if s.name.startswith(f"{runtime.STEM}_")]
        assert not [s.name for s in symbols if s.section and not s.name.startswith("net_")]


def test_renaming_keeps_the_rest_of_an_object(kernels: bytes) -> None:
    same = rename_symbols(kernels, lambda name: name)
    other = rename_symbols(kernels, lambda name: {"relu": "a_much_longer_name"}.get(name, name))
    for code, changed in ((same, "relu"), (other, "a_much_longer_name")):
        for old, new in zip(
            read_object(kernels).symbols(), read_object(code).symbols(), strict=True
        ):
            assert new.name == (changed if old.name == "relu" else old.name)
            assert (new.section, new.value, new.size) == (old.section, old.value, old.size)
