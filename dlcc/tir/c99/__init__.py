"""Prints TIR functions as C99 that any compiler takes.

:mod:`dlcc.tir.c99.lowering` brings a function to plain scalar loops, :mod:`~.statements` and
:mod:`~.expressions` print these. What the text calls is defined in
``dlcc/runtime/c/bare/arithmetic.c``.
"""

from dlcc.tir.c99.expressions import Unprintable
from dlcc.tir.c99.lowering import print_kernel

__all__ = ["Unprintable", "print_kernel"]
