"""``python -m refgpt`` is ``refgpt``."""

import sys

from refgpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
