"""``python -m graphprune``: the same as the ``graphprune`` command."""

from __future__ import annotations

import sys

from graphprune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
