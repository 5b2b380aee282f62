"""Cycles of an inference, predicted from the emitted code without the machine.

What runs, and how often, is known exactly: the library runs in an emulator that counts the
executions of each block of instructions (:mod:`dlcc.cycles.emulator`). What a block costs is
predicted by LLVM's scheduling model of the core (:mod:`dlcc.cycles.mca`), with all data in the
first-level cache and all branches foreseen.
"""
