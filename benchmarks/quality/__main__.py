"""`python -m benchmarks.quality`; see `benchmarks.quality.command`."""

import sys

from benchmarks.quality.command import main

sys.exit(main())
