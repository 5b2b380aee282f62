"""ONNX's own test cases of single nodes, against the importer and the references.

A case whose model gives a shape, an axis or a bound as a run-time input is tried again with its
inputs after the first as initialisers, which is how real models hold them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.onnx import import_onnx
from dlcc.frontends.registry import IMPORTERS
