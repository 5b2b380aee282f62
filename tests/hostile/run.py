"""``python -m tests.hostile.run BITS NAME...`` compiles files of the corpus, one after another.

Prints a JSON object at the end: by name, the seconds it took and whether there is an artifact.
"""

from __future__ import annotations

import json
import sys
import time

from tests.hostile import probe
from tests.hostile.corpus import corpus


def main(bits: int, names: list[str]) -> None:
    """Compile the cases called ``names``."""
    results: dict[str, tuple[float, bool]] = {}
    cases = {c.name: c for c in corpus()}
    for name in names:
        start = time.monotonic()
        try:
            with probe.place() as folder:
                taken = probe.compiled(cases[name], folder, bits)
        except BaseException:
            sys.stderr.write(f"\n-- {name}\n")
            raise
        results[name] = (time.monotonic() - start, taken)
    sys.stdout.write(f"\n{json.dumps(results)}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
