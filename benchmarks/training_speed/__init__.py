"""Training speed beside RecBole's SASRec on the same events, in one run. `python -m benchmarks.training_speed --help`.

`environment` installs RecBole into a virtual environment of its own, `inputs` writes the events as its atomic files,
`pinrec_side` and `recbole_side` are the processes that train (`child`, `side`), `measure` lets them take turns, and
`report` makes the section of docs/quality.md.
"""
