"""Artifacts: a compiled network as a folder with a C library, header, weights and manifest."""

from dlcc.artifact.account import account
from dlcc.artifact.bare import has_profiles
from dlcc.artifact.folder import check_output
from dlcc.artifact.manifest import Artifact, profile_suffix
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
    "has_profiles",
    "profile_suffix",
    "write_artifact",
]
