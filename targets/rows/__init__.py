"""Rows of kernel tables: from IR nodes to the specs of :mod:`targets.kernels`, with costs."""
