"""``python -m loopwatch`` is the same as the command ``loopwatch``."""

import sys

from loopwatch.commands import main

if __name__ == "__main__":
    sys.exit(main())
