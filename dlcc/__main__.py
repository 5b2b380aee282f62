"""``python -m dlcc``: the command line."""

import sys

from dlcc.cli import main

if __name__ == "__main__":
    sys.exit(main())
