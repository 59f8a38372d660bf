"""What PinRec costs, each measure beside a baseline of the same run. `python -m benchmarks --help`.

P5 (`ingest`) needs a broker alone; P1 (`freshness`) and P4 (`queries`) share one running application. Each writes one
JSON (`result.Result`), and `report` makes docs/performance.md of them. Nothing imports a benchmark.
"""
