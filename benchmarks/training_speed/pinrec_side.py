"""PinRec's learner on the same events, with RecBole's width, layers and length; runs in the project's environment."""

import time
from pathlib import Path

import torch

from benchmarks.quality.models import MODELS
from benchmarks.quality.run import Prepared, Wanted
from benchmarks.training_speed.child import Job, Training, serve
from pinrec.contender import PinRec

MODEL = "pinrec"


def prepare(job: Job) -> tuple[dict[str, float], dict[str, Training]]:
    """Read the log, and train as `MODELS["pinrec"]` does under leave-one-out, in other sizes."""
    torch.set_num_threads(job["threads"])
    wanted = Wanted(Path(job["data"]), "loo", MODEL, all_engage=True)
    prepared = Prepared(wanted, {MODEL: MODELS[MODEL].but({f"{wanted.dataset} loo": job["settings"]})})
    contender, split = prepared.contender, prepared.split
    assert isinstance(contender, PinRec)
    learner, events = contender.learner, split.training_events

    def train(steps: int) -> dict[str, float]:
        """One step more than is timed: the clock runs from the end of the first, once the events are sorted."""
        times: list[float] = []
        done = learner.fit(events, split.log.catalogue, steps + 1, lambda *_: times.append(time.perf_counter()))
        timed = steps / (steps + 1)
        return {
            "seconds": times[-1] - times[0],
            "steps": steps,
            "predictions": done.predictions * timed,
            "events": done.events * timed,
        }

    facts: dict[str, float] = {
        "rows": len(events),
        "items": len(split.log.catalogue),
        "threads": torch.get_num_threads(),
    }
    return facts, {"pinrec": train}


if __name__ == "__main__":
    serve(prepare)
