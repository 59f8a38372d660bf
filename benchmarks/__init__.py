"""What PinRec costs, each measure beside a baseline of the same run. `python -m benchmarks --help`.

P5 (`ingest`) needs a broker alone; P1 (`freshness`), P1b (`fastest`), P4 (`queries`), P4b (`usual`), P6c
(`catalogue`) and P12 (`replicas`) share one running application; P9 (`gpu`) has a command of its own. Each writes one
JSON (`result.Result`), and `report` makes docs/performance.md of them, `capacity` docs/capacity.md. Nothing imports a
benchmark.
"""
