"""Fitting the weights: one step, and the loop around it, for a first model and for every later round."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec.config import Mode, ModelConfig, TrainingConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.items import Catalogue
from pinrec.losses import exact_softmax, refused_softmax, sampled_softmax
from pinrec.model import UNKNOWN, PinRecModel, previous_timestamps
from pinrec.parallel import Group, Share
from pinrec.ranking import Exposures, ranking_loss
from pinrec.sketch import CountMinSketch
from pinrec.subjects import Subjects
from pinrec.windows import Indices, Targets, Windows

IN_BATCH: Final = 512  # most in-batch negatives; the logits would grow with their square
LONG_EVERY: Final = 4  # every so many batches hold windows as long as served histories
BUCKETED: Final = 16  # batches cut from one lot of windows sorted by length, to save padding
DROP: Final = 0.12  # how often a condition is dropped, so that one set of weights serves every mode
LATER_RATE: Final = 0.3  # learning rate of later rounds, of the first one's
FINAL_RATE: Final = 0.1  # what the rate falls to in the course of a fit


@dataclass(frozen=True)
class FitResult:
    """What a fit did. `loss` is the mean over its last tenth of steps, NaN if there was none."""

    steps: int
    events: int
    predictions: int
    loss: float
    seconds: float

    @property
    def events_per_s(self) -> float:
        """Input events encoded in a second."""
        return self.events / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Schedule:
    """Where a fit stands in a longer one, in steps: the learning rate rises and falls once over `total`."""

    first: int
    total: int


class Learner:
    """The model with all that training it further needs: optimiser, target frequencies, count of steps.

    Args:
        config, vocabulary, training: sizes, declared names, rates.
        mode: what predictions are conditioned on: nothing; the target's action and surface; also the
            time until it, with later targets beside the next one.
    """

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, training: TrainingConfig, mode: Mode) -> None:
        self.config, self.vocabulary, self.training, self.mode = config, vocabulary, training, mode
        with torch.random.fork_rng():
            torch.manual_seed(training.seed)
            self.model = PinRecModel(config, vocabulary)
        self.sketch = CountMinSketch()
        self.step, self.fits = 0, 0
        named = list(self.model.named_parameters())
        self.average = {name: p.detach().clone() for name, p in named} if training.averaging else {}
        # Decay pulls tables' rarely seen rows, norms and biases nowhere useful; but IDs towards what the features say.
        decayed = [p for name, p in named if p.ndim == 2 and not _is_table(name)]
        others = [p for name, p in named if p.ndim != 2 and not _is_table(name)]
        tables = [p for name, p in named if _is_table(name) and not _is_of_ids(name)]
        ids = [p for name, p in named if _is_of_ids(name)]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": training.weight_decay, "scale": 1.0},
                {"params": others, "weight_decay": 0.0, "scale": 1.0},
                {"params": tables, "weight_decay": 0.0, "scale": training.table_rate},
                {"params": ids, "weight_decay": training.id_decay, "scale": training.table_rate},
            ],
            lr=training.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )

    def fit(
        self,
        events: EventColumns,
        catalogue: Catalogue,
        steps: int,
        progress: Callable[[int, int, float], None] | None = None,
        since_row: int = 0,
        schedule: Schedule | None = None,
        group: Group | None = None,
    ) -> FitResult:
        """Train for `steps` steps on windows around the events at rows >= since_row.

        The learning rate warms up and falls within each fit, so what it leaves can be published; fits
        after the first use a lower one. Deterministic for a seed, a number of threads and the same calls.

        Args:
            events, catalogue: all that is known; older events are context of the new ones.
            steps: none are made if there is nothing to predict.
            progress: called after each step with (steps done, steps, loss).
            since_row: later rounds train on windows that hold events at this row or later, beside a replay of older
                windows that takes `training.replay_share` of each batch.
            schedule: this fit is a part of a longer one; None = it is whole.
            group: processes that make this very call together, each with a learner in the same state; a batch is then
                as many times larger, and all end with the same weights. Every one of them must be told the same.
        """
        began = time.perf_counter()
        windows, subjects = Windows(events, self.vocabulary), Subjects(events, catalogue, self.config)
        subject_of, surface_of = subjects.of_event[windows.order], events.surface[windows.order].astype(np.int64)
        exposures = Exposures(windows, events, self.vocabulary) if self.model.ranking is not None else None
        share = Share(group)
        step_data = _StepData(
            windows, subjects, subject_of, surface_of, len(catalogue), self._tuned_surfaces(), exposures, share
        )
        rng = np.random.default_rng((self.training.seed, self.step))
        losses: list[float] = []
        inputs = predictions = 0
        later = self.fits > 0 and schedule is None
        schedule = schedule or Schedule(0, steps)
        peak = self.training.learning_rate * (LATER_RATE if later else 1.0)
        batches = self._batches(windows, rng, since_row, share.ranks)
        self.model.train()
        with torch.random.fork_rng():
            torch.manual_seed(self.training.seed + self.step)
            for done, (lo, hi) in zip(range(steps), batches, strict=False):
                for alike in self.optimizer.param_groups:
                    alike["lr"] = peak * alike["scale"] * _rate(schedule.first + done, schedule.total)
                tuned = schedule.first + done >= (1 - self.training.fine_tune_share) * schedule.total
                loss, predicted = self._step(step_data, rng, lo, hi, tuned)
                losses.append(loss)
                inputs += int((hi - lo).sum())
                predictions += predicted
                if progress is not None:
                    progress(done + 1, steps, loss)
        self.model.eval()
        self.fits += bool(losses)
        tail = np.array(losses[-max(1, len(losses) // 10) :])
        told = tail[np.isfinite(tail)]  # a batch may hold nothing to predict
        mean = float(told.mean()) if len(told) else float("nan")
        return FitResult(len(losses), inputs, predictions, mean, time.perf_counter() - began)

    def _tuned_surfaces(self) -> NDArray[np.bool_] | None:
        """Which surfaces fine-tuning is for, bool[surfaces]; None = all.

        Raises:
            ValueError: one is not declared.
        """
        names = self.training.fine_tune_surfaces
        for name in names:
            if name not in self.vocabulary.surface_index:
                raise ValueError(f"fine_tune_surfaces: {name!r} is not a declared surface")
        return np.array([name in names for name in self.vocabulary.surfaces]) if names else None

    def _batches(
        self, windows: Windows, rng: np.random.Generator, since_row: int, ranks: int
    ) -> Iterator[tuple[Indices, Indices]]:
        """Windows [lo, hi) of one step after the other, without end; none where there is nothing to predict."""
        new, old = slice(since_row, None), slice(since_row)
        if not windows.predictable(new):
            return
        replayed = self.training.replay_share if windows.predictable(old) else 0.0
        parts = [(new, 1 - replayed), (old, replayed)] if replayed else [(new, 1.0)]
        lots = [
            [self._lots(windows, rng, length, rows, ranks * share) for rows, share in parts]
            for length in (self.training.window, self.config.history)
        ]
        for number in range(self.step, 2**62):
            drawn = [next(lot) for lot in lots[number % LONG_EVERY == LONG_EVERY - 1]]
            yield (
                drawn[0]
                if len(drawn) == 1
                else (
                    np.concatenate([lo for lo, _ in drawn]),
                    np.concatenate([hi for _, hi in drawn]),
                )
            )

    def _lots(
        self, windows: Windows, rng: np.random.Generator, length: int, rows: slice, share: float
    ) -> Iterator[tuple[Indices, Indices]]:
        budget = max(length, round(share * self.training.batch_users * self.training.window))
        while True:
            lo, hi = windows.epoch(rng, length, rows)
            shuffled = rng.permutation(len(lo))
            # About as many windows to a lot as fill BUCKETED batches.
            size = max(1, int(BUCKETED * budget / max(1.0, float((hi - lo).mean()))))
            for at in range(0, len(lo), size):
                lot = shuffled[at : at + size]
                lot = lot[np.argsort((hi - lo)[lot], kind="stable")]
                batches = list(_packed((hi - lo)[lot], budget))
                for number in rng.permutation(len(batches)):
                    batch = lot[batches[number]]
                    yield lo[batch], hi[batch]

    def _step(
        self, data: "_StepData", rng: np.random.Generator, lo: Indices, hi: Indices, tuned: bool
    ) -> tuple[float, int]:
        """One step of the optimiser on the windows [lo, hi); returns loss and number of predictions.

        A `tuned` step is one of surface-wise fine-tuning with impression negatives.
        """
        self.step += 1
        windows, training, exposures = data.windows, self.training, data.exposures
        position_BL = lo[:, None] + np.arange(int((hi - lo).max()))
        real_BL = position_BL < hi[:, None]
        position_BL = np.minimum(position_BL, hi[:, None] - 1)
        later = training.later_targets if self.mode == "multi_token" else 0
        source = position_BL[real_BL]
        aims = windows.targets(rng, source, later, self.config.max_offset_s, training.feed_relaxation)
        if tuned and data.tuned_surfaces is not None:
            aims = aims.at(data.tuned_surfaces[data.surface_of[aims.target]])
        if not (predictions := len(aims.target)):
            return float("nan"), 0

        # Whatever is drawn is drawn for the whole batch: all ranks of a group draw the same.
        pool = self._pool(data, rng, data.subject_of[aims.target])
        action_BL, since, exposed = windows.action[position_BL], lo, 0
        if exposures is not None:
            action_BL[rng.random(action_BL.shape) < training.action_mask] = UNKNOWN
        hidden_BL = rng.random(position_BL.shape) < training.item_mask if training.item_mask else None
        dropped_CM = rng.random((4, predictions)) < DROP
        if exposures is not None:
            since = lo + (rng.random() * (hi - lo)).astype(np.int64)
            exposed = int(exposures.within(lo, hi, since)[1].sum())

        ours, rows = data.share.mine(np.nonzero(real_BL)[0]), data.share.windows
        asked_M = ours[aims.asked]
        part = _Part(
            lo=lo[rows],
            hi=hi[rows],
            since=since[rows],
            position_BL=position_BL[rows],
            real_BL=real_BL[rows],
            action_BL=action_BL[rows],
            hidden_BL=hidden_BL if hidden_BL is None else hidden_BL[rows],
            aims=replace(aims.at(asked_M), asked=(np.cumsum(ours) - 1)[aims.asked[asked_M]]),
            dropped_CM=dropped_CM[:, asked_M],
            predictions=predictions,
            exposed=exposed,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._part_loss(data, part, pool, tuned)
        if loss.requires_grad:
            torch.autograd.backward(loss)
        total = data.share.sum_gradients(list(self.model.parameters()), loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._average()
        return total, predictions

    def _part_loss(self, data: "_StepData", part: "_Part", pool: "_Pool", tuned: bool) -> Tensor:
        """What one process's windows add to the loss of the step, a scalar; without gradient where it has nothing."""
        windows, training, model, aims = data.windows, self.training, self.model, part.aims
        if not len(part.lo):
            return torch.zeros(())
        source = part.position_BL[part.real_BL]
        offset_s = windows.timestamp[aims.target] - windows.timestamp[source[aims.asked]]
        weighed = tuned and training.impression_weight > 0
        refused_MR = windows.refused(source[aims.asked]) if weighed else np.full((len(aims.target), 0), -1)
        parts = (part.position_BL, aims.admissible, refused_MR)
        used, codes = np.unique(
            np.concatenate([*(data.subjects_at(positions).ravel() for positions in parts), pool.subject]),
            return_inverse=True,
        )
        vectors_UD = data.subjects.vectors(model, used[used >= 0])
        input_BL, positive_MA, negative_MR, pool_P = torch.split(
            torch.as_tensor(codes - int(used[0] < 0)), [*(positions.size for positions in parts), len(pool.subject)]
        )
        timestamp_BL = torch.as_tensor(windows.timestamp[part.position_BL])
        item_BLD = told_BLD = vectors_UD[input_BL].view(*part.position_BL.shape, -1)
        if part.hidden_BL is not None:
            told_BLD = item_BLD.masked_fill(torch.as_tensor(part.hidden_BL)[..., None], 0.0)
        x_BLD = model.tokens(
            told_BLD,
            torch.as_tensor(part.action_BL),
            torch.as_tensor(data.surface_of[part.position_BL]),
            timestamp_BL,
            previous_timestamps(timestamp_BL),
        )
        length_B = torch.as_tensor(part.hi - part.lo)
        h_BLD, cache = (model(x_BLD), None) if data.exposures is None else model.prefill(x_BLD, length_B)
        loss = torch.zeros(())
        if len(aims.target):
            h_MD = h_BLD.flatten(0, 1)[torch.as_tensor(np.flatnonzero(part.real_BL)[aims.asked])]
            e_MD = self._predict(
                part.dropped_CM, h_MD, windows.action[aims.target], data.surface_of[aims.target], offset_s
            )
            positive_MA, negative_MR = positive_MA.view(aims.admissible.shape), negative_MR.view(refused_MR.shape)
            created, when = data.subjects.created[pool.subject], windows.timestamp[aims.target]
            dates = (torch.as_tensor(created), torch.as_tensor(when)) if (created > when.min()).any() else None
            loss = self._loss(e_MD, vectors_UD, positive_MA, pool_P, pool.log_weight, dates)
            if weighed:
                refusal = self._refusal_loss(e_MD, vectors_UD, positive_MA, negative_MR)
                loss = loss + training.impression_weight * refusal
            loss = loss * (len(aims.target) / part.predictions)
        if data.exposures is not None and cache is not None:
            ranked = ranking_loss(model, data.exposures, part.lo, part.hi, part.since, item_BLD, cache, part.exposed)
            loss = loss + training.ranking_weight * ranked
        return loss

    def _loss(
        self,
        e_MD: Tensor,
        vectors_UD: Tensor,
        positive_MA: Tensor,
        pool_P: Tensor,
        log_weight_P: Tensor,
        dates: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Mean loss; positives and pool are rows of the vectors, -1 where a prediction has fewer positives.

        What is predicted was chosen among what there was: of the dates, those of the pool's items [P] and of the
        predictions [M], newer items are no negatives of a prediction. None = all were always there.
        """
        admissible_MA = positive_MA >= 0
        positive_MAD = vectors_UD[positive_MA.clamp(min=0)]
        if self.training.softmax == "exact":
            if positive_MA.shape[1] > 1:
                with torch.no_grad():
                    score_MA = torch.einsum("md,mad->ma", e_MD, positive_MAD).masked_fill(~admissible_MA, -torch.inf)
                positive_MA = positive_MA.gather(1, score_MA.argmax(1, keepdim=True))
            # The pool is the whole catalogue and every positive in it or, if an item has left, beside it.
            return exact_softmax(
                e_MD,
                vectors_UD[pool_P],
                torch.searchsorted(pool_P, positive_MA[:, 0].contiguous()),
                1 / self.model.temperature,
                dates=dates,
            )
        place_U = torch.full((len(vectors_UD) + 1,), len(pool_P))  # the last is that of -1
        place_U[pool_P] = torch.arange(len(pool_P))
        left_out_MP = torch.zeros(len(e_MD), len(pool_P) + 1, dtype=torch.bool).scatter_(1, place_U[positive_MA], True)
        left_out_MP = left_out_MP[:, :-1]
        if dates is not None:
            left_out_MP = left_out_MP | (dates[0] > dates[1][:, None])
        return sampled_softmax(
            e_MD, positive_MAD, admissible_MA, vectors_UD[pool_P], log_weight_P, left_out_MP, self.model.temperature
        ).mean()

    def _refusal_loss(self, e_MD: Tensor, vectors_UD: Tensor, positive_MA: Tensor, negative_MR: Tensor) -> Tensor:
        """Mean over all predictions; those whose users refused nothing count as 0."""
        return refused_softmax(
            e_MD,
            vectors_UD[positive_MA.clamp(min=0)],
            positive_MA >= 0,
            vectors_UD[negative_MR.clamp(min=0)],
            negative_MR >= 0,
            self.model.temperature,
        ).mean()

    @torch.no_grad()
    def _average(self) -> None:
        """Move the running average of the weights; its start is short so that early weights are soon forgotten."""
        if not self.average:
            return
        stays = min(self.training.averaging, self.step / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), list(self.model.parameters()), 1 - stays)

    def _predict(
        self,
        dropped_CM: NDArray[np.bool_],
        h_MD: Tensor,
        outcome: Indices,
        surface: Indices,
        offset_s: NDArray[np.float64],
    ) -> Tensor:
        """Embeddings [M, D], conditioned on what the targets turned out to be, less what is dropped."""
        drop_all, drop_outcome, drop_surface, drop_offset = dropped_CM
        everything = drop_all | (self.mode == "unconditioned")
        outcome = np.where(everything | drop_outcome, -1, outcome)
        surface = np.where(everything | drop_surface, -1, surface)
        offset_s = np.where(everything | drop_offset | (self.mode == "outcome"), -1.0, offset_s)
        return self.model.head(
            h_MD,
            torch.as_tensor(outcome)[:, None],
            torch.as_tensor(surface)[:, None],
            torch.as_tensor(offset_s.astype(np.float32))[:, None],
        )[:, 0]

    def _pool(self, data: "_StepData", rng: np.random.Generator, target_M: Indices) -> "_Pool":
        """Negatives of the step.

        In-batch and uniform draws form one mixture; an item's expected count is taken over both.
        """
        training, items = self.training, data.catalogue_items
        self.sketch.add(data.subjects.hashes[target_M])
        if training.softmax == "exact":
            subject = np.union1d(np.arange(items), target_M)
            return _Pool(subject, torch.zeros(len(subject)))
        drawn, expected_uniform, in_batch = [], 0.0, 0
        if training.in_batch_negatives or not items:
            chosen = target_M if len(target_M) <= IN_BATCH else rng.choice(target_M, IN_BATCH, replace=False)
            in_batch = len(chosen)
            drawn.append(chosen)
        if items:
            drawn.append(rng.integers(0, items, training.uniform_negatives))
            expected_uniform = training.uniform_negatives / items
        pool, counts = np.unique(np.concatenate(drawn), return_counts=True)
        if not training.log_q:
            return _Pool(pool, torch.as_tensor(np.log(counts).astype(np.float32)))
        expected = in_batch * self.sketch.frequency(data.subjects.hashes[pool])
        expected += np.where(pool < items, expected_uniform, 0.0)
        return _Pool(pool, torch.as_tensor(np.log(counts / expected).astype(np.float32)))

    def served(self) -> PinRecModel:
        """The model with the weights to serve: the running average where one is kept."""
        if not self.average:
            return self.model
        served = copy.deepcopy(self.model)
        served.load_state_dict(self.average, strict=False)
        return served

    def state(self) -> dict[str, Tensor]:
        """Everything a later process needs to go on: tensors only."""
        state = {f"model.{name}": value.detach().clone() for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{name}.{key}"] = value.detach().clone()
        state |= {f"average.{name}": value.clone() for name, value in self.average.items()}
        state["sketch.counts"] = torch.as_tensor(self.sketch.counts.copy())
        state["sketch.total"] = torch.tensor(self.sketch.total, dtype=torch.float64)
        state["progress"] = torch.tensor([self.step, self.fits])
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned.

        Raises:
            ValueError: the state belongs to a model of other sizes or another vocabulary.
        """
        weights = {name.removeprefix("model."): v for name, v in state.items() if name.startswith("model.")}
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"state: of a model of other sizes; train a new one ({error})") from None
        for name, parameter in self.model.named_parameters():
            prefix = f"optimizer.{name}."
            moments = {key.removeprefix(prefix): v.clone() for key, v in state.items() if key.startswith(prefix)}
            if moments:
                self.optimizer.state[parameter] = {name: v.to(parameter.device) for name, v in moments.items()}
        for name, kept in self.average.items():
            self.average[name] = state.get(f"average.{name}", weights[name]).to(kept.device, copy=True)
        self.sketch.counts = state["sketch.counts"].cpu().numpy().copy()
        self.sketch.total = float(state["sketch.total"])
        self.step, self.fits = state["progress"].tolist()


@dataclass(frozen=True)
class _StepData:
    """What all steps of a fit share."""

    windows: Windows
    subjects: Subjects
    subject_of: Indices
    surface_of: Indices
    catalogue_items: int

    tuned_surfaces: NDArray[np.bool_] | None
    exposures: Exposures | None
    share: Share

    def subjects_at(self, positions: Indices) -> Indices:
        """Subjects of events; -1 for -1."""
        return np.where(positions >= 0, self.subject_of[positions], -1)


@dataclass(frozen=True)
class _Part:
    """One process's windows of a batch, and what was drawn for them.

    Attributes:
        lo, hi, since: int64[B]; ranking learns from the exposures that begin in [since, hi).
        position_BL, real_BL, action_BL: see `Learner._step`.
        hidden_BL: bool, events whose items the model is not told; None = it is told all.
        aims: `asked` counts the real positions of these windows.
        dropped_CM: bool[4, M], conditions left out: all, outcome, surface, offset.
        predictions, exposed: of the whole batch; the loss is a mean over them.
    """

    lo: Indices
    hi: Indices
    since: Indices
    position_BL: Indices
    real_BL: NDArray[np.bool_]
    action_BL: Indices
    hidden_BL: NDArray[np.bool_] | None
    aims: Targets
    dropped_CM: NDArray[np.bool_]
    predictions: int
    exposed: int


@dataclass(frozen=True)
class _Pool:
    """Distinct negatives [P] of a step, ascending, and the log of (times drawn / times expected)."""

    subject: Indices
    log_weight: Tensor


def _packed(ascending: Indices, budget: int) -> Iterator[slice]:
    """Cut windows of ascending lengths into runs of at most `budget` positions, padding included."""
    begin = 0
    while begin < len(ascending):
        padded = ascending[begin:] * np.arange(1, len(ascending) - begin + 1)
        end = begin + max(1, int(np.searchsorted(padded, budget, side="right")))
        yield slice(begin, end)
        begin = end


def _rate(done: int, steps: int) -> float:
    """Share of the peak learning rate: a linear warm-up over a twentieth of the steps, then a linear fall."""
    warm = max(1, steps // 20)
    return min((done + 1) / warm, 1.0 - (1.0 - FINAL_RATE) * max(0, done - warm) / max(1, steps - warm))


def _is_table(name: str) -> bool:
    return name.startswith(("tower.ids.", "tower.bag.", "action.", "surface.", "output.outcome.", "output.surface."))


def _is_of_ids(name: str) -> bool:
    return name.startswith("tower.ids.")
