"""Runs in the emulated machine: LiteRT on one thread, XNNPACK as by default.

Arguments: model, file for the memory map. Runs the model N and 2 N times, with a mark that the
emulator's plugin knows after each.
"""

import contextlib
import os
import sys

import numpy as np
from ai_edge_litert import interpreter

MARK, WARM, RUNS = -77777, 3, 2

litert = interpreter.Interpreter(sys.argv[1], num_threads=1)
litert.allocate_tensors()
border = litert.get_input_details()[0]
codes = np.random.default_rng(0).integers(-128, 128, border["shape"])
litert.set_tensor(border["index"], codes.astype(border["dtype"]))
for times in (WARM, RUNS, 2 * RUNS):
    for _ in range(times):
        litert.invoke()
    with contextlib.suppress(OSError):
        os.close(MARK)
with open("/proc/self/maps") as maps, open(sys.argv[2], "w") as output:
    output.write(maps.read())
