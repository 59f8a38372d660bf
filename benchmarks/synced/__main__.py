"""`python -m benchmarks.synced`."""

import sys

from benchmarks.synced.command import main

if __name__ == "__main__":
    sys.exit(main())
