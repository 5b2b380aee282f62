"""Bounds of the stack that a compiled network takes."""

from dlcc.artifact.stack.bound import stack_bytes

__all__ = ["stack_bytes"]
