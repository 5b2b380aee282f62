"""Timing of an artifact against other engines, in interleaved rounds.

Every engine lives in a process of its own, so that idle threads of one do not disturb another and
each has its own allocator state. A round runs one slot of every engine, in turn and in alternating
order; slow drifts of the machine (clock, neighbours) then hit all alike, and the ratio of a round
means more than absolute times. Reported are medians over rounds.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from dlcc.errors import DlccError, ExitCode

if TYPE_CHECKING:
    from dlcc.remote.board import Board

PEERS = ("onnxruntime", "openvino")
SLOT_SECONDS = 0.15
CPU_FEATURES = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16"),
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
_START_SECONDS = 300.0


@dataclass
class EngineTimes:
    """Times of one engine.

    Attributes:
        engine: "dlcc", "onnxruntime" or "openvino".
        version: its version.
        network: file that it ran.
        precision: what it computed in: "int8", "fp32", or "mixed" for dlcc.
        threads: threads it was given.
        load_seconds: from the file to ready to run.
        rounds: seconds of one inference in each round: the median of the round's slot.
    """

    engine: str
    version: str
    network: str
    precision: str
    threads: int
    load_seconds: float
    rounds: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median over rounds."""
        return statistics.median(self.rounds)


@dataclass
class BenchResult:
    """What ``dlcc bench`` shows.

    Attributes:
        cpu: name of the CPU.
        features: those of :data:`CPU_FEATURES` that it has.
        times: of each engine; the first artifact stands first.
        unavailable: peer -> reason.
        board: what the board says of itself, if it was one.
    """

    cpu: str
    features: list[str]
    times: list[EngineTimes]
    unavailable: dict[str, str]
    board: dict[str, Any] | None = None

    def ratio(self, peer: EngineTimes) -> float:
        """How many times as long as the first artifact: the median of the rounds' ratios."""
        ours = self.times[0].rounds
        return statistics.median(p / o for p, o in zip(peer.rounds, ours, strict=True))

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        rows = [{**asdict(t), "seconds": t.seconds, "ratio": self.ratio(t)} for t in self.times]
        board = {} if self.board is None else {"board": self.board}
        return {
            **board,
            "cpu": self.cpu,
            "features": self.features,
            "engines": rows,
            "unavailable": self.unavailable,
        }


@dataclass(frozen=True)
class Contender:
    """What one engine is to run."""

    engine: str
    network: Path
    precision: str
    shape_profile: int = 0


def cpu_description() -> tuple[str, list[str]]:
    """Model name of this CPU and those of :data:`CPU_FEATURES` that it has."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), []
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return fields.get("model name", platform.machine()), [f for f in CPU_FEATURES if f in flags]


def bench(
    artifacts: Path | Sequence[Path],
    peers: Sequence[Contender] = (),
    *,
    threads: int = 1,
    rounds: int = 7,
    slot_seconds: float = SLOT_SECONDS,
    shape_profile: int = 0,
    board: Board | None = None,
    progress: Callable[[str, float], None] = lambda _phase, _fraction: None,
) -> BenchResult:
    """Time artifacts and peers on the same random input.

    Args:
        artifacts: the compiled networks; ratios are to the first one.
        peers: other engines and what they run.
        threads: threads for each engine.
        rounds: number of rounds.
        slot_seconds: least time of one engine's turn in a round.
        shape_profile: number of the artifacts' shape profile that runs.
        board: where the artifacts run; None for this machine. Peers run here only.
        progress: told how far it is.

    Raises:
        DlccError: an artifact cannot run.
    """
    given = [artifacts] if isinstance(artifacts, Path) else artifacts
    result = _empty_result(board)
    with ExitStack() as stack:
        workers: list[tuple[Worker, EngineTimes]] = []
        ours = (Contender("dlcc", path, "mixed", shape_profile) for path in given)
        for contender in (*ours, *peers):
            worker = stack.enter_context(_worker(contender, threads, board))
            ready = worker.ask({})
            if "error" in ready:
                if contender.engine == "dlcc":
                    raise _artifact_error(ready)
                result.unavailable[contender.engine] = str(ready["error"])
                continue
            times = EngineTimes(
                contender.engine,
                str(ready["version"]),
                str(contender.network),
                str(ready.get("precision", contender.precision)),
                int(ready["threads"]),
                float(ready["load_seconds"]),
            )
            workers.append((worker, times))
        result.times = [times for _, times in workers]
        for index in range(rounds):
            progress("rounds", index / rounds)
            for worker, times in workers if index % 2 == 0 else workers[::-1]:
                answer = worker.ask({"slot_seconds": slot_seconds})
                if "error" in answer:
                    raise DlccError(
                        ExitCode.INTERNAL, f"{times.engine} failed", why=str(answer["error"])
                    )
                times.rounds.append(float(answer["seconds"]))
        progress("rounds", 1.0)
    return result


def _empty_result(board: Board | None) -> BenchResult:
    if board is None:
        cpu, features = cpu_description()
        return BenchResult(cpu, features, [], {})
    features = [name for name in CPU_FEATURES if name in board.features]
    return BenchResult(board.cpu, features, [], {}, board.facts)


def _worker(contender: Contender, threads: int, board: Board | None) -> Worker:
    if board is None:
        return _LocalWorker(contender, threads)
    if contender.shape_profile:
        raise DlccError(
            ExitCode.USAGE,
            "a board runs the first shape profile of an artifact",
            where="--shape-profile",
            why=f"number {contender.shape_profile} is asked for",
            fix="leave the option out, or compile this shape alone",
        )
    from dlcc.remote.network import RemoteWorker

    return RemoteWorker(board, contender.network, threads)


def _artifact_error(answer: dict[str, Any]) -> DlccError:
    code = ExitCode(int(answer.get("exit_code", ExitCode.ARTIFACT)))
    return DlccError(
        code,
        str(answer["error"]),
        where=str(answer.get("where", "")),
        why=str(answer.get("why", "")),
        fix=str(answer.get("fix", "")),
    )


class Worker(Protocol):
    """What holds one engine while it is timed."""

    def __enter__(self) -> Self: ...

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers as :mod:`dlcc.bench_worker` does."""

    def __exit__(self, *_: object) -> None: ...


class _LocalWorker:
    """A process that holds one engine; speaks one JSON object per line."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self._job = {
            "engine": contender.engine,
            "network": str(contender.network),
            "threads": threads,
            "shape_profile": contender.shape_profile,
        }
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dlcc.bench_worker", json.dumps(self._job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request, wait for the answer; a dead worker answers with its last words."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        words = process.stderr.read().strip().splitlines()
        code = process.wait(_START_SECONDS)
        return {"error": words[-1] if words else f"its process ended with code {code}"}

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is None:
            return
        process.kill()
        process.communicate()


def onnx_precision(network: Path) -> str:
    """What an ONNX file computes in: "int8" where it has quantised layers, else "fp32".

    Raises:
        DlccError: the file cannot be read.
    """
    from dlcc.frontends.onnx_model import read_model

    ops = {node.op_type for node in read_model(network).graph.node}
    marks = ("QLinear", "QuantizeLinear", "ConvInteger", "MatMulInteger")
    return "int8" if any(op.startswith(marks) for op in ops) else "fp32"


def installed(peer: str) -> bool:
    """Whether the Python package of a peer is there."""
    from importlib.util import find_spec

    return find_spec(peer) is not None


__all__ = [
    "PEERS",
    "BenchResult",
    "Contender",
    "EngineTimes",
    "Worker",
    "bench",
    "cpu_description",
    "installed",
    "onnx_precision",
]
