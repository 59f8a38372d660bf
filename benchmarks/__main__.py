"""`python -m benchmarks`; see `benchmarks.command`."""

import sys

# Every repeat's process imports this module, and needs nothing of the command.
if __name__ == "__main__":
    from benchmarks.command import main

    sys.exit(main())
