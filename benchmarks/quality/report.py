"""docs/quality.md and its plots, from the JSONs: `python -m benchmarks.quality.report`.

No figure of ours in a table is typed by hand. Typed, in `public`, are the figures of others, who is told what (READS),
what was tried where a goal is not reached (TRIED) and why a public figure is not reproduced (WHY_NOT), with the figures
of trials in them, of which there are no JSONs.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from benchmarks.quality.admission import Admission
from benchmarks.quality.budgets_record import FOLDER as BUDGETS
from benchmarks.quality.budgets_record import BudgetRun, read_budgets
from benchmarks.quality.budgets_report import Pooled, budgets_section
from benchmarks.quality.cold_record import FOLDER as COLD
from benchmarks.quality.cold_record import ColdRun, read_colds
from benchmarks.quality.cold_report import cold_section
from benchmarks.quality.disjoint import ablations, disjoint_section, equal_name
from benchmarks.quality.kept_record import FOLDER as KEPT
from benchmarks.quality.kept_record import KeptRun, read_kept
from benchmarks.quality.kept_report import kept_section
from benchmarks.quality.leave_one_out import leave_one_out_section, reproduced
from benchmarks.quality.plan import BASELINES, METHOD
from benchmarks.quality.plots import draw_bars, draw_curves, draw_sweeps
from benchmarks.quality.ranking_record import FOLDER, RankingRun, read_rankings
from benchmarks.quality.ranking_report import ranking_section
from benchmarks.quality.record import RESULTS, Run, read_runs
from benchmarks.quality.settings import recipes
from benchmarks.quality.words import DATA, NAMES, of_model
from benchmarks.result import ROOT, BenchmarkError, Result
from benchmarks.training_speed.record import FOLDER as SPEEDS
from benchmarks.training_speed.record import read_speeds
from benchmarks.training_speed.report import training_speed_section

DOCUMENT: Final = ROOT / "docs" / "quality.md"
PLOTS: Final = DOCUMENT.parent / "plots"
CURVES: Final = "quality-curves"
BARS: Final = "quality-{}"
SWEEP: Final = "quality-budgets-{}"

_HEAD: Final = """\
# Quality

How well PinRec finds what a user engages with next, beside other models on the same events. `make quality DATA=path`
takes or resumes all runs but that of [training speed](#training-speed), which has a command of its own, and makes this
page of the JSONs in `benchmarks/results/quality/`; `LIST=1` shows which are done. A single run is explained by
`.venv/bin/python -m benchmarks.quality --help`, and this page alone is made by
`.venv/bin/python -m benchmarks.quality.report`. The data sets are not in this repository: `path` holds a folder for
each (`ml1m`, `amazon_beauty`, `kuairand_pure`), with `interactions.csv.gz` and `items.csv.gz` in the plain log form.

## Protocols

What holds for both:

- Events are in the order of their times; equal times keep the order of the file, which in ML-1M is that of `position`.
- The catalogue is every item of the log, and all of it is ranked: no negatives are sampled to test against. Items of
  the history are never retrieved. Equal scores go to the lower row of the catalogue, whose rows are by ascending id.
- A model is trained on the events that the split allows, its epoch is selected on validation, and the test users are
  looked at once, with the weights of that epoch.
- A seed decides the model's randomness alone; the split is the same for all models and seeds.
- HR@10, NDCG@10 and recall@10 are those of one list of ten. NDCG@10 is over the best that the number of targets allows.

**Leave-one-out.** A user's last event is the test target, the one before it the validation target, the rest is
trained on; at test time the history holds the validation item. Every action counts. Selected by NDCG@10.

**Disjoint.** Users are divided at random; those tested and those validated on (a tenth) are never trained on. The
first half of such a user's events is the history; the targets are the items engaged with in the rest that the history
does not hold. KuaiRand-Pure: 5 folds, each tested once. ML-1M: one of ten folds, with like, neutral and dislike all
as outcomes. A user's budget of items is n = 10 E, with E embeddings a user from the models that generate them (16 on
KuaiRand-Pure, 12 on ML-1M; on any other log two steps of its frequent outcomes, three at most, at two offsets, and
as many from every mode), free-running.

- **equal@n** is the share of targets in one list of n distinct items. Every model shows as many, so this and recall@10
  compare families. Selected by equal@n.
- **unordered@10** is the share of targets that any embedding has among its own ten, **diversity** the distinct items
  over all that the embeddings retrieve. The tens of a generative model overlap, so it has fewer than n distinct items
  to find a target with; a model of one list would have its best n here. Both are therefore given for PinRec's modes
  alone, `-` for others.

Epochs are selected on each fold's own validation users. PinRec's recipe was chosen by trials on those of fold 0, some
of whom are tested in other folds.

Means are over all tested users; in a comparison a user's figure is the mean over seeds, on the folds that both models
have. A difference stands with its 95 % interval by the paired bootstrap over users (2,000 draws), relative to what it
is taken from. Verdicts: *none* where the interval holds zero, *met* where the difference is decided and the figure
itself reaches the goal, else *not met*. The interval knows the chance in the users, not the chance in the training.
"""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.report",
        description="Make docs/quality.md and its plots from the JSONs.",
        epilog="Example: python -m benchmarks.quality.report",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSONs")
    try:
        print(f"written: {write_report(parser.parse_args(arguments).results)}")
    except BenchmarkError as error:
        print(f"quality: {error}", file=sys.stderr)
        return 2
    return 0


def write_report(results: Path) -> Path:
    """Write the document and the plots; where the document lies.

    Raises:
        BenchmarkError: a file is no run.
    """
    runs, budgets = read_runs(results), read_budgets(results / BUDGETS.name)
    write_plots(runs, budgets, PLOTS)
    rankings, speeds = read_rankings(results / FOLDER.name), read_speeds(results / SPEEDS.name)
    colds, kept = read_colds(results / COLD.name), read_kept(results / KEPT.name)
    DOCUMENT.write_text(render(runs, rankings, budgets, speeds, colds, kept))
    return DOCUMENT


def render(
    runs: Sequence[Run],
    rankings: Sequence[RankingRun] = (),
    budgets: Sequence[BudgetRun] = (),
    speeds: Mapping[str, Result] = MappingProxyType({}),
    colds: Sequence[ColdRun] = (),
    kept: Sequence[KeptRun] = (),
) -> str:
    """The document."""
    plots = plots_of(runs, budgets)
    parts = [_HEAD, "## Leave-one-out\n"]
    for dataset in ("ml1m", "amazon_beauty"):
        parts += leave_one_out_section(_of(runs, dataset, "loo"), dataset)
    parts += _picture(plots, CURVES, "NDCG@10 on validation over the hours of each run")
    parts += reproduced(runs)
    for dataset in ("kuairand_pure", "ml1m"):
        parts += disjoint_section(_of(runs, dataset, "disjoint"), dataset, Admission(runs))
        parts += _picture(plots, BARS.format(dataset), f"equal@n of each model on {DATA[dataset]}")
    swept = {d: _picture(plots, SWEEP.format(d), f"The sweeps of budgets on {DATA[d]}") for d in DATA}
    pictures = {d: line[0] for d, line in swept.items() if line}
    parts += budgets_section(budgets, pictures, {run.name: run.config for run in runs})
    parts += ablations(_of(runs, "kuairand_pure", "disjoint"))
    parts += ranking_section(rankings)
    parts += cold_section(colds, recipes(runs))
    parts += kept_section(kept, recipes(runs))
    parts += training_speed_section(speeds)
    return "\n".join([*parts, *_machines(runs), ""])


def plots_of(runs: Sequence[Run], budgets: Sequence[BudgetRun] = ()) -> list[str]:
    """Names of the pictures that these runs give."""
    names = [CURVES] if any(len(run.curve) > 1 for run in runs if run.protocol == "loo") else []
    names += [BARS.format(dataset) for dataset in DATA if _compared(runs, dataset)]
    return names + [SWEEP.format(dataset) for dataset in DATA if dataset in {run.dataset for run in budgets}]


def write_plots(runs: Sequence[Run], budgets: Sequence[BudgetRun], folder: Path) -> list[Path]:
    """Draw all of `plots_of` into a folder; where they lie."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.svg" for name in plots_of(runs, budgets)}
    for name, path in paths.items():
        _draw(runs, budgets, name, path)
    return list(paths.values())


def _draw(runs: Sequence[Run], budgets: Sequence[BudgetRun], name: str, path: Path) -> None:
    if name == CURVES:
        fitted = [run for run in runs if run.protocol == "loo" and len(run.curve) > 1]
        draw_curves({d: of for d in DATA if (of := _of(fitted, d, "loo"))}, DATA, NAMES, path)
    elif dataset := next((d for d in DATA if name == SWEEP.format(d)), None):
        draw_sweeps(Pooled([run for run in budgets if run.dataset == dataset]), path)
    else:
        dataset = next(d for d in DATA if name == BARS.format(d))
        compared = _compared(runs, dataset)
        draw_bars(compared, NAMES, equal_name([run for of in compared.values() for run in of]), path)


def _compared(runs: Sequence[Run], dataset: str) -> dict[str, list[Run]]:
    found = _of(runs, dataset, "disjoint")
    return {model: of for model in (*BASELINES, *METHOD[::-1]) if (of := of_model(found, model))}


def _of(runs: Sequence[Run], dataset: str, protocol: str) -> list[Run]:
    return [run for run in runs if run.dataset == dataset and run.protocol == protocol]


def _picture(plots: Sequence[str], name: str, text: str) -> list[str]:
    return [f"![{text}](plots/{name}.svg)\n"] if name in plots else []


def _machines(runs: Sequence[Run]) -> list[str]:
    """Where the runs were taken, and by which code: one line a machine."""
    commits: dict[str, dict[str, None]] = {}
    for run in runs:
        commits.setdefault(str(run.machine), {})[run.commit] = None
    data = {run.dataset: run.data_sha256 for run in runs}
    hashes = [f"{DATA.get(name, name)} {sha[:12]}" for name, sha in data.items()]
    lines = [f"- {place}; commits {', '.join(sorted(of))}." for place, of in commits.items()]
    return ["## Where\n", *lines, f"- SHA-256 of log and items: {'; '.join(hashes)}."] if runs else []


if __name__ == "__main__":
    sys.exit(main())
