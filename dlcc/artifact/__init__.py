"""Artifacts: a compiled network as a folder with a C library, header, weights and manifest."""

from dlcc.artifact.account import account
from dlcc.artifact.folder import check_output
from dlcc.artifact.manifest import Artifact
from dlcc.artifact.names import c_identifier, check_name
from dlcc.artifact.storage import PACKS, Pack, check_pack
from dlcc.artifact.write import EMITS, write_artifact

__all__ = [
    "EMITS",
    "PACKS",
    "Artifact",
    "Pack",
    "account",
    "c_identifier",
    "check_name",
    "check_output",
    "check_pack",
    "write_artifact",
]
