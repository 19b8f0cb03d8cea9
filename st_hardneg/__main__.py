"""``python -m st_hardneg``, which is the command ``st-hardneg``."""

from __future__ import annotations

import sys

from st_hardneg.command.main import main

if __name__ == "__main__":
    sys.exit(main())
