"""Networks that run on another machine: a board with ``dlcc-server`` (dlcc/runtime/c/server)."""

from dlcc.remote.board import Board
from dlcc.remote.build import build_server
from dlcc.remote.network import RemoteNetwork, RemoteWorker

__all__ = ["Board", "RemoteNetwork", "RemoteWorker", "build_server"]
