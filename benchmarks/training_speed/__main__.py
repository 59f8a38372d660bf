"""`python -m benchmarks.training_speed`; see `benchmarks.training_speed.command`."""

import sys

from benchmarks.training_speed.command import main

sys.exit(main())
