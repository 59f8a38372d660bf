"""How well PinRec retrieves, beside other models, under stated protocols. `python -m benchmarks.quality --help`.

`plan` is the list of runs, `queue` takes those that remain, `run` is one of them, selected on validation
(`pinrec.selection`); `models` names what can be run; `record` is the JSON that a run leaves in
benchmarks/results/quality/; `report` makes docs/quality.md of them.
"""
