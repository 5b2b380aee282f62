"""The runtime: a C library without any framework (``c/``), and the Python view of it."""
