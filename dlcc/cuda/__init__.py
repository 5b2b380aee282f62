"""NVIDIA's compiler as a library, and what its output tells of kernels."""
