"""``python -m paper_experiments``."""

import sys

from paper_experiments.command import main

if __name__ == "__main__":
    sys.exit(main())
