"""dlcc against other engines on an NVIDIA GPU, in two halves.

``python -m benchmarks.gpu prepare`` works on a machine without a GPU and makes a folder;
``./run`` in that folder measures on a machine with one, where only Python and numpy have to be;
``python -m benchmarks.gpu table`` makes tables of the results. See docs/benchmarking.md.
"""
