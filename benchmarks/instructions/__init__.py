"""Executed instructions of one inference on AArch64: dlcc against LiteRT's own build for it.

    python -m benchmarks.instructions set-up      # once: LiteRT's models and an arm64 Python
    python -m benchmarks.instructions run         # counts, as a table

Everything runs in Debian's qemu-user, with the plugin of :mod:`dlcc.cycles.emulator`, which counts
every executed instruction exactly. Needs Debian (apt, dpkg) and the packages qemu-user.
"""
