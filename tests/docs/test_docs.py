"""The documentation is true: its code runs, its links lead somewhere, its lists are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from run_page import blocks

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RUNNABLE = ("python", "sh")

_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_PATH = re.compile(r"`((?:dlcc|passes|targets|tests|examples|docs|benchmarks)/[\w./-]+)`")
_WIDTH = 100


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def runs_code(page: Path) -> bool:
    return any(
        block.language in RUNNABLE and block.directive != "not run"
        for block in blocks(page.read_text("utf-8"))
    )


CODE_PAGES = [page for page in PAGES if runs_code(page)]


@pytest.mark.parametrize("page", CODE_PAGES, ids=page_id)
def test_code_runs(page: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    runner = Path(__file__).with_name("run_page.py")
    done = subprocess.run(
        [sys.executable, str(runner), str(page)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "ok" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    links = {link for link in _LINK.findall(text) if "://" not in link}
    dead = sorted(link for link in links if not (page.parent / link).exists())
    dead += sorted(path for path in set(_PATH.findall(text)) if not (ROOT / path).exists())
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_pages_are_tidy(page: Path) -> None:
    lines = page.read_text("utf-8").splitlines()
    wide = [i for i, line in enumerate(lines, 1) if len(line) > _WIDTH and "|" not in line]
    assert wide == []
    assert lines[0].startswith("# ")


def test_every_page_is_linked() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    unlinked = [page_id(p) for p in (ROOT / "docs").glob("*.md") if f"docs/{p.name}" not in readme]
    assert unlinked == []


@pytest.mark.parametrize("name", ["adding-an-op", "adding-a-pass", "adding-a-kernel"])
def test_the_guides_run_their_example(name: str) -> None:
    assert ROOT / "docs" / f"{name}.md" in CODE_PAGES


def test_cli_page_lists_every_verb_and_exit_code() -> None:
    import typer

    from dlcc.cli.app import EXIT_CODES, app

    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"^\| `dlcc (\w+)", text, re.MULTILINE)) == verbs
    listed = dict(re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE))
    for code, meaning in EXIT_CODES.items():
        assert listed[str(int(code))] == meaning


def test_blocks() -> None:
    text = (
        "# t\n<!-- file: a.c -->\n\n```c\nint a;\n```\n\n```python\nx = 1\n```\n"
        "<!-- not run: slow -->\n```sh\nmake\n```\n<!-- file: gone -->\ntext\n```sh\nls\n```\n"
    )
    found = [(b.language, b.directive, b.argument, b.line) for b in blocks(text)]
    assert found == [
        ("c", "file", "a.c", 4),
        ("python", "", "", 8),
        ("sh", "not run", "slow", 12),
        ("sh", "", "", 17),
    ]


def test_block_without_end() -> None:
    with pytest.raises(ValueError, match="no end"):
        list(blocks("# t\n```sh\nls\n"))


@pytest.mark.parametrize(
    ("code", "word"),
    [("```python\nassert 1 == 2\n```", "AssertionError"), ("```sh\nfalse\n```", "ended with 1")],
)
def test_runner_notices_failure(code: str, word: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# t\n\n{code}\n")
    runner = Path(__file__).with_name("run_page.py")
    done = subprocess.run(
        [sys.executable, str(runner), str(page)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert word in done.stdout + done.stderr
