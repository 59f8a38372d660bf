"""What the ranking head gains and costs: `python -m benchmarks.quality.ranking --data ../data/kuairand_pure`.

It fits PinRec with a ranking head as `python -m benchmarks.quality` fits it without, or goes on from a checkpoint, and
measures on the test users of a fold:

- shown: what a user was shown after the history, ranked by the head, by retrieval, by popularity and at random;
- retrieved: lists of ten as retrieval orders them, and out of more candidates as the head does;
- cost: milliseconds of the head on the cache of retrieval, against encoding the history again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.models import MODELS
from benchmarks.quality.process import add_trial, ended, results, use_all_cores
from benchmarks.quality.ranking_record import FOLDER, MODEL, Compared, Cost, RankingRun, Time
from benchmarks.quality.record import means
from benchmarks.quality.run import Prepared, Wanted
from benchmarks.result import ROOT, machine, summary
from pinrec.bundle import Bundle
from pinrec.config import GenerationConfig
from pinrec.contender import PinRec, PinRecRecipe
from pinrec.encoding import encode
from pinrec.generation import embed, generate, rank
from pinrec.history import ROW, History
from pinrec.measures import BATCH, K, measure, paired_bootstrap
from pinrec.protocols import Cases, Split
from pinrec.requests import GenerationRequest
from streaming.process import keep_freed_memory

DEPTHS: Final = (1, 10)
CANDIDATES: Final = 100
BATCHES: Final = (1, 32)
REPEATS: Final = 7
SHUFFLES: Final = 20  # of each list, for the figure of a random order
_REPEAT_S: Final = 0.2  # a repeat is as many calls as take about so long

ENTRY: Final = MODELS["pinrec"].but({"": {"model": {"ranking": True}}})

Figures = dict[str, NDArray[np.float64]]
"""Name -> float64[B], a figure of each user."""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parse(arguments)
    keep_freed_memory()
    use_all_cores()
    wanted = Wanted(options.data, "disjoint", MODEL, options.seed, options.fold, epochs=options.epochs)
    return ended(wanted.name, lambda: _take(wanted, results(options)), "goes on from the last whole epoch")


def _take(wanted: Wanted, out: Path) -> None:
    prepared = Prepared(wanted, {MODEL: ENTRY})
    fitted = prepared.fit(progress=lambda f: print(f"epoch {f.curve[-1].epoch}: {f.curve[-1].valid}", flush=True))
    contender, split = prepared.contender, prepared.split
    assert isinstance(contender, PinRec)
    shown = shown_figures(contender, prepared.config, split)
    retrieved = retrieved_figures(contender, prepared.config, split)
    run = RankingRun(
        dataset=wanted.dataset,
        seed=wanted.seed,
        fold=wanted.fold,
        test=means(measure(contender, split.test, prepared.selection.embeddings).mean()),
        valid=means(fitted.valid),
        shown=_mean(shown) | {"users": float(len(shown["head"]))},
        retrieved=_mean(retrieved) | {"users": float(len(split.test))},
        gains={f"shown ndcg@{K}": _compared(shown["retrieval"], shown["head"])}
        | {
            f"retrieved {name}, {depth} a place": _compared(retrieved[name], retrieved[f"{name}, {depth} a place"])
            for name in (f"ndcg@{K}", f"recall@{K}")
            for depth in DEPTHS
        },
        cost=[
            cost(contender.bundle, requests[:batch], prepared.config.generation)
            for requests in (_longest(contender, split.test), _full_windows(contender.bundle, split))
            for batch in BATCHES
        ],
        best_epoch=fitted.best_epoch,
        seconds=round(fitted.seconds, 1),
        config=prepared.described,
        commit=prepared.commit,
        data_sha256=prepared.data_sha256,
        machine=machine(ROOT),
    )
    print(run.model_dump_json(include={"shown", "retrieved", "gains", "cost"}, indent=1))
    print(run.write(out / FOLDER.name))


def shown_lists(split: Split) -> tuple[Cases, list[NDArray[np.int64]], list[NDArray[np.bool_]]]:
    """Test users, the unseen items that each was shown after the history, and which of them were engaged with.

    Users of whom all were, or none, are left out: any order of theirs is as good.
    """
    log, cases, kept, rows, liked = split.log, split.test, [], [], []
    for case, (user, hi) in enumerate(zip(cases.user.tolist(), cases.hi.tolist(), strict=True)):
        met = np.setdiff1d(log.item[hi : log.end[user]], cases.seen[case])
        met = met[met >= 0]
        engaged = np.isin(met, cases.targets[case])
        if not engaged.all():
            kept.append(case)
            rows.append(met)
            liked.append(engaged)
    return cases.at(np.array(kept, np.int64)), rows, liked


def ndcg(score: NDArray[Any], liked: NDArray[np.bool_], k: int = K) -> float:
    """NDCG@k of items ordered by score; equal scores keep their order."""
    gain = 1 / np.log2(np.arange(k) + 2)
    hit = liked[np.argsort(-score, kind="stable")][:k]
    return float((hit * gain[: len(hit)]).sum() / gain[: min(k, int(liked.sum()))].sum())


def shown_figures(contender: PinRec, recipe: PinRecRecipe, split: Split) -> Figures:
    """NDCG@10 of what users were shown, in the order of the head, of retrieval, of popularity, and at random.

    Retrieval's score of an item is the best inner product with any of the embeddings that it would search with;
    popularity's is how often training users engaged with the item.
    """
    cases, rows, liked = shown_lists(split)
    popular = np.bincount(split.log.item[split.log.engaged & split.train], minlength=len(split.log.catalogue))
    generation, bundle, rng = recipe.generation, contender.bundle, np.random.default_rng(0)
    figures: dict[str, list[float]] = {name: [] for name in ("head", "retrieval", "popularity", "random")}
    for at in range(0, len(cases), BATCH):
        some = slice(at, at + BATCH)
        requests = contender.requests(cases.at(np.arange(len(cases))[some]), K)
        embeddings = embed(bundle, requests, generation).e_BED
        by_head = rank(bundle, requests, rows[some], generation)
        for each, head, row, mine in zip(embeddings, by_head, rows[some], liked[some], strict=True):
            figures["head"].append(ndcg(head, mine))
            figures["retrieval"].append(ndcg((each @ bundle.table[row].T).max(0), mine))
            figures["popularity"].append(ndcg(popular[row], mine))
            figures["random"].append(float(np.mean([ndcg(rng.random(len(row)), mine) for _ in range(SHUFFLES)])))
    return {name: np.array(values) for name, values in figures.items()}


def retrieved_figures(contender: PinRec, recipe: PinRecRecipe, split: Split) -> Figures:
    """Figures of lists of ten, as retrieval orders them and as the head does out of `DEPTHS` candidates a place."""
    names = f"hr@{K}", f"ndcg@{K}", f"recall@{K}"
    figures: Figures = {}
    for depth in (0, *DEPTHS):
        deeper = replace(recipe, generation=recipe.generation.model_copy(update={"rerank": depth}))
        other = PinRec(split, deeper, seed=0)
        other.load_state(contender.state())
        found = measure(other, split.test).figures
        figures |= {f"{name}, {depth} a place" if depth else name: found[name] for name in names}
    return figures


def cost(bundle: Bundle, requests: Sequence[GenerationRequest], generation: GenerationConfig) -> Cost:
    """Milliseconds of ranking `CANDIDATES` items for each request, and of lists of ten with and without the head."""
    rng = np.random.default_rng(0)
    rows = [rng.choice(len(bundle.catalogue), min(CANDIDATES, len(bundle.catalogue)), replace=False) for _ in requests]
    encoded = encode(bundle, requests)
    reranked = generation.model_copy(update={"rerank": DEPTHS[-1]})
    calls: dict[str, Callable[[], object]] = {
        "head, cache reused": lambda: rank(bundle, requests, rows, generation, encoded),
        "head, history encoded again": lambda: rank(bundle, requests, rows, generation),
        "list without head": lambda: generate(bundle, requests, generation),
        "list with head": lambda: generate(bundle, requests, reranked),
    }
    for call in calls.values():  # warm
        call()
    number = {name: max(1, int(_REPEAT_S / _seconds(call, 1))) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            samples[name].append(1e3 * _seconds(call, number[name]))
    times = {name: Time(median=(s := summary(values))[0], spread=s[1]) for name, values in samples.items()}
    return Cost(
        batch=len(requests),
        events=float(np.mean([len(request.history or ()) for request in requests])),
        candidates=len(rows[0]),
        threads=torch.get_num_threads(),
        times=times,
        ratio=times["head, history encoded again"].median / times["head, cache reused"].median,
    )


def _seconds(call: Callable[[], object], number: int) -> float:
    """Of one call, the mean."""
    began = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - began) / number


def _longest(contender: PinRec, cases: Cases) -> list[GenerationRequest]:
    """Requests of the test users with the longest histories."""
    return contender.requests(cases.at(np.argsort(cases.lo - cases.hi, kind="stable")[: max(BATCHES)]), K)


def _full_windows(bundle: Bundle, split: Split) -> list[GenerationRequest]:
    """Requests with as many events as the model encodes, of several users together: what it costs is the same."""
    events, length, requests = split.log.events, bundle.config.history, []
    for at in range(max(BATCHES)):
        taken = np.arange(at * length, (at + 1) * length) % len(events)
        rows = np.zeros(length, ROW)
        for name in ("item_hash", "action", "surface"):
            rows[name] = getattr(events, name)[taken]
        rows["timestamp"] = np.sort(events.timestamp[taken])
        requests.append(GenerationRequest(History.of_rows(rows), K, now=float(rows["timestamp"][-1])))
    return requests


def _mean(figures: Figures) -> dict[str, float]:
    return means({name: float(np.mean(values)) for name, values in figures.items()})


def _compared(before: NDArray[np.float64], after: NDArray[np.float64]) -> Compared:
    found = paired_bootstrap(before, after)
    kept = means({"before": found.mean_a, "after": found.mean_b, "low": found.low, "high": found.high})
    return Compared(**kept, users=len(before))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.ranking",
        description="Measure what the ranking head gains and costs.",
        epilog="Example: python -m benchmarks.quality.ranking --data ../data/kuairand_pure",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with interactions.csv.gz, in the plain form")
    parser.add_argument("--fold", type=int, default=0, help="of the five, the one to test on (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    add_trial(parser, "folder of the runs' JSONs; its own goes to ranking/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
