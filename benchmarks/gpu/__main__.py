"""`python -m benchmarks.gpu`; see `benchmarks.gpu.command`."""

import sys

from benchmarks.gpu.command import main

sys.exit(main())
