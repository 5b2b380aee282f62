"""dlcc against other CPU engines on thirteen seeded networks: ``make bench``.

docs/benchmarking.md says what is measured and how. ``python -m benchmarks.peers --help`` lists the
commands. Modules that other engines' environments run (:mod:`.worker`, :mod:`.engines`,
:mod:`.prepare`, :mod:`.hide_amx`, :mod:`.networks`) import nothing but the standard library, numpy
and the engine.
"""
