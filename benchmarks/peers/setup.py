"""Making environments and models in the cache folder; what is there already is left alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.catalogue import ENVIRONMENTS, PRODUCTS, Contender, Environment, Product

REPOSITORY = Path(__file__).resolve().parents[2]
MAKE_SECONDS = 1800.0
"""Longest time for one model."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Cache:
    """The folder that holds everything.

    A thing that cannot be made leaves a file ``NAME.failed`` with the reason; the next set-up tries
    again.
    """

    root: Path

    @property
    def models(self) -> Path:
        """Models, inputs and artifacts."""
        return self.root / "models"

    def python(self, environment: str) -> Path:
        """The interpreter of an environment; dlcc's own for ""."""
        if not environment:
            return Path(sys.executable)
        return self.root / f"venv-{environment}" / "bin" / "python"

    def model(self, pattern: str, network: str) -> Path:
        """A product's file."""
        return self.models / pattern.format(network)

    def samples(self, network: str) -> Path:
        """The arrays ``x``, ``y`` and ``calib``."""
        return self.models / f"{network}.npz"

    def log(self, name: str) -> Path:
        """A file for what a process says."""
        folder = self.root / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"

    def missing(self, contender: Contender, network: str) -> str | None:
        """Why a contender cannot run a network; None if nothing speaks against it."""
        for name, path in (
            (f"venv-{contender.environment}", self.python(contender.environment)),
            (contender.product.format(network), self.model(contender.product, network)),
        ):
            if name and not path.exists() and contender.environment:
                why = self._failure(name)
                return f"no {name}: {why.read_text() if why.exists() else 'not made yet'}"
        return None

    @contextlib.contextmanager
    def alone(self, say: Say) -> Iterator[None]:
        """Wait until no other process makes or measures anything in this folder."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "used.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for the process that uses {self.root}")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _failure(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.failed"

    def failed(self, name: str, reason: str) -> str:
        """Note why something could not be made."""
        self.log(name)
        self._failure(name).write_text(reason)
        return reason

    def made(self, name: str) -> None:
        """Forget an earlier failure."""
        self._failure(name).unlink(missing_ok=True)


def set_up(cache: Cache, networks: Iterable[str], contenders: Iterable[Contender], say: Say) -> int:
    """Make what the contenders need; failures are told and noted, and the rest goes on.

    Returns:
        How many things could not be made.
    """
    cache.models.mkdir(parents=True, exist_ok=True)
    chosen, names = list(contenders), list(networks)
    failures = 0
    failures += not make_environment(cache, ENVIRONMENTS["torch"], say, _lacking(cache, names))
    environments = dict.fromkeys(c.environment for c in chosen if c.environment)
    for name in environments:
        failures += not make_environment(cache, ENVIRONMENTS[name], say)
    # the source first, then in an order in which each product's origin is made before it
    wanted = {p for c in chosen if c.product for p in _with_origins(c.product)} | {"{}.onnx"}
    for product in (p for p in PRODUCTS.values() if p.pattern in wanted):
        left = [n for n in names if not cache.model(product.pattern, n).exists()]
        if left and product.environment not in environments and product.environment != "torch":
            failures += not make_environment(cache, ENVIRONMENTS[product.environment], say)
        failures += sum(not _product(cache, product, network, say) for network in left)
    return failures


def _lacking(cache: Cache, networks: list[str]) -> bool:
    return any(not cache.model("{}.onnx", n).exists() for n in networks)


def _with_origins(pattern: str) -> list[str]:
    product = PRODUCTS[pattern]
    return [pattern, *(_with_origins(product.needs) if product.needs else [])]


def make_environment(cache: Cache, environment: Environment, say: Say, needed: bool = True) -> bool:
    """Make an environment and install into it; True unless that failed."""
    name = f"venv-{environment.name}"
    folder = cache.root / name
    stamp = folder / ".requirements"
    text = "\n".join((*environment.before, *environment.requirements))
    if not needed or (stamp.exists() and stamp.read_text() == text):
        return True
    say(f"{name}: installing {' '.join(environment.requirements)}")
    python = cache.python(environment.name)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = [] if python.exists() else [[sys.executable, "-m", "venv", str(folder)]]
    steps += [[*install, *r] for r in (environment.before, environment.requirements) if r]
    for step in steps:
        reason = _run(step, cache.log(name))
        if reason:
            say(f"{name}: FAILED: {cache.failed(name, reason)}")
            shutil.rmtree(folder, ignore_errors=True)
            return False
    stamp.write_text(text)
    cache.made(name)
    return True


def _product(cache: Cache, product: Product, network: str, say: Say) -> bool:
    """Make one model file; True unless that failed."""
    target = cache.model(product.pattern, network)
    if product.needs and not cache.model(product.needs, network).exists():
        reason = f"there is no {product.needs.format(network)}"
    elif not cache.python(product.environment).exists():
        reason = f"there is no venv-{product.environment}"
    else:
        say(f"{target.name}: making")
        module = f"benchmarks.peers.prepare.{product.module}"
        command = [str(cache.python(product.environment)), "-m", module]
        reason = _run([*command, str(cache.models), network], cache.log(target.name))
        if not reason and not target.exists():
            reason = "its preparation wrote nothing"
    if reason:
        target.unlink(missing_ok=True)  # half a file is worse than none
        say(f"{target.name}: FAILED: {cache.failed(target.name, reason)}")
        return False
    cache.made(target.name)
    return True


def _run(command: list[str], log: Path) -> str:
    """Run a command, its words in ``log``; why it failed, "" if it did not."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command,
                cwd=REPOSITORY,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=MAKE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"it took more than {MAKE_SECONDS:.0f} s"
    if done.returncode == 0:
        return ""
    words = log.read_text(errors="replace").strip().splitlines()
    return words[-1][:300] if words else f"it ended with code {done.returncode}"
