"""RecBole's SASRec, trained by RecBole's own trainer; runs in RecBole's environment (`python -m`, see `child`)."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from recbole.config import Config
from recbole.data import create_dataset, get_dataloader
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

from benchmarks.training_speed.child import Job, Training, serve
from benchmarks.training_speed.rows import covering

Batch = Any  # recbole.data.interaction.Interaction


class EveryPosition(SASRec):
    """The same network with a prediction at every position, which RecBole does not offer."""

    def gather_indexes(self, output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        """All states [B, L, D], where RecBole keeps the last one."""
        return output

    def calculate_loss(self, interaction: Batch) -> torch.Tensor:
        """The loss of the last position, at all real ones: each is to find the item behind it."""
        items, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]  # [B, L], [B]
        last = (length - 1)[:, None]
        targets = items.roll(-1, 1).scatter(1, last, interaction[self.POS_ITEM_ID][:, None])
        real = torch.arange(items.shape[1]) <= last
        logits = self.forward(items, length)[real] @ self.item_embedding.weight.T
        loss: torch.Tensor = self.loss_fct(logits, targets[real])
        return loss


def prepare(job: Job) -> tuple[dict[str, float], dict[str, Training]]:
    """Read the atomic files, and train as RecBole does ("rows") and at every position ("windows")."""
    torch.set_num_threads(job["threads"])
    config = Config(model="SASRec", dataset=job["dataset"], config_dict=job["config"])
    init_seed(config["seed"], config["reproducibility"])
    dataset, _, _ = create_dataset(config).build()  # the first part of its split is all that it was given
    batches = get_dataloader(config, "train")(config, dataset, None, shuffle=True)
    rows, model = dataset.inter_feat, SASRec(config, dataset)
    facts = {"rows": len(rows), "items": model.n_items - 1, "threads": torch.get_num_threads()}
    return facts, {
        "rows": _training(Trainer(config, model), _endless(batches), len),
        "windows": _training(
            Trainer(config, EveryPosition(config, dataset)),
            _windows(_by_user(rows, config), model.ITEM_SEQ_LEN, config),
            lambda batch: int(batch[model.ITEM_SEQ_LEN].sum()),
        ),
    }


def _training(trainer: Trainer, batches: Iterator[Batch], predictions_of: Callable[[Batch], int]) -> Training:
    """Train so many batches, by the trainer's own loop over an epoch."""

    def train(steps: int) -> dict[str, float]:
        predictions = events = 0

        def counted() -> Iterator[Batch]:
            nonlocal predictions, events
            for batch in itertools.islice(batches, steps):
                predictions += predictions_of(batch)
                events += int(batch[trainer.model.ITEM_SEQ_LEN].sum())
                yield batch

        began = time.perf_counter()
        trainer._train_epoch(counted(), 0)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "steps": steps, "predictions": predictions, "events": events}

    return train


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from batches


def _by_user(rows: Batch, config: Config) -> Batch:
    """The rows of a user one after the other, by time."""
    by_time = rows[config["TIME_FIELD"]].argsort(stable=True)
    return rows[by_time[rows[config["USER_ID_FIELD"]][by_time].argsort(stable=True)]]


def _windows(rows: Batch, length_field: str, config: Config) -> Iterator[Batch]:
    """Rows that together hold each prediction once, as many at a time as make a batch of predictions."""
    user, length = rows[config["USER_ID_FIELD"]], rows[length_field]
    chosen = torch.tensor(covering(user.tolist(), length.tolist()))
    generator = torch.Generator().manual_seed(config["seed"])
    while True:
        shuffled = chosen[torch.randperm(len(chosen), generator=generator)]
        for batch in shuffled.split(max(1, round(config["train_batch_size"] / float(length[chosen].float().mean())))):
            yield rows[batch]


if __name__ == "__main__":
    serve(prepare)
