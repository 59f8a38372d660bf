"""What the neural baselines share: fitting by epochs that can be resumed exactly, and ranking by inner products.

Shapes: B histories, T places, D width, M predictions of a step, N items of the catalogue.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pinrec.baselines.contender import one_list, top_unseen
from pinrec.baselines.sequences import Sequences, by_length, item_counts, real_lengths
from pinrec.config import Frozen
from pinrec.measures import Rows
from pinrec.protocols import Cases, Indices, Split


class FittingConfig(Frozen):
    """How the weights of a baseline are fitted: AdamW at a constant rate."""

    epochs: int = Field(100, ge=1, description="passes over the training users")
    batch_users: int = Field(128, ge=1, description="users of one step")
    max_length: int = Field(50, ge=2, description="a user's latest events that are encoded")
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(0.0, ge=0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers by this seed; those outside are not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class Fitted(ABC):
    """A `Contender` fitted by gradient descent that ranks items by the inner product with an encoded history.

    All randomness of an epoch comes from (seed, epoch). A user without any history to encode gets what is popular.
    """

    def __init__(self, split: Split, config: FittingConfig, seed: int, model: nn.Module) -> None:
        self.log, self.seed = split.log, seed
        self.training = Sequences.of_training(split)
        self.positives = self.training.engaged(split.log)
        self.counts_N = item_counts(split.log, self.positives)
        self.epochs, self.epoch = config.epochs, 0
        self._config, self._module = config, model.eval()
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )

    @abstractmethod
    def trainable(self) -> Indices:
        """Users that something can be learned from."""

    @abstractmethod
    def loss(self, users: Indices, rng: np.random.Generator) -> tuple[Tensor, int]:
        """Mean loss over the predictions of a step on these users, and their number."""

    @abstractmethod
    def histories(self, cases: Cases) -> Sequences:
        """What of the cases' histories is encoded."""

    @abstractmethod
    def encode(self, rows_BT: Indices) -> Tensor:
        """What follows each place: [B, T, D]. Places never see later ones; -1 is padding, only at the end."""

    @abstractmethod
    def items(self) -> Tensor:
        """[N, D], whose inner products with encoded histories are the scores."""

    def fit_epoch(self) -> float:
        """Train on every user once; returns the mean loss, NaN if there was nothing to predict."""
        rng = np.random.default_rng((self.seed, self.epoch))
        total, predictions = 0.0, 0
        users = rng.permutation(self.trainable())
        self._module.train()
        with seeded(int(rng.integers(2**63))):
            for at in range(0, len(users), self._config.batch_users):
                loss, predicted = self.loss(users[at : at + self._config.batch_users], rng)
                if not predicted:
                    continue
                self._optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                self._optimizer.step()
                total += float(loss.detach()) * predicted
                predictions += predicted
        self._module.eval()
        self.epoch += 1
        return total / predictions if predictions else float("nan")

    def state(self) -> dict[str, Tensor]:
        """Weights, moments and the number of epochs done; copies."""
        state = {f"model.{name}": value.detach().clone() for name, value in self._module.state_dict().items()}
        for name, parameter in self._module.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{name}.{key}"] = value.detach().clone()
        state["epoch"] = torch.tensor(self.epoch)
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned.

        Raises:
            ValueError: the state belongs to a model of other sizes.
        """
        weights = {name.removeprefix("model."): v for name, v in state.items() if name.startswith("model.")}
        try:
            self._module.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"state: of a model of other sizes; train a new one ({error})") from None
        self._optimizer.state.clear()
        for name, parameter in self._module.named_parameters():
            prefix = f"optimizer.{name}."
            moments = {key.removeprefix(prefix): v.clone() for key, v in state.items() if key.startswith(prefix)}
            if moments:
                self._optimizer.state[parameter] = {name: v.to(parameter.device) for name, v in moments.items()}
        self.epoch = int(state["epoch"])

    def scores(self, cases: Cases) -> Tensor:
        """A score for every item: float32[B, N]."""
        histories = self.histories(cases)
        there = np.flatnonzero(histories.length)
        scores_BN = torch.as_tensor(self.counts_N.astype(np.float32)).repeat(len(cases), 1)
        with torch.no_grad():
            table_DN = self.items().T.contiguous()
            for group in by_length(histories.length[there]):
                rows_BT = histories.last(there[group], self._config.max_length)
                h_BTD = self.encode(rows_BT)
                h_BD = h_BTD[torch.arange(len(rows_BT)), torch.as_tensor(real_lengths(rows_BT) - 1)]
                scores_BN[torch.as_tensor(there[group])] = h_BD @ table_DN
        return scores_BN

    def ranked(self, cases: Cases, k: int) -> Rows:
        """The k best unseen items: int64[B, k]."""
        return top_unseen(self.scores(cases), cases, k)

    def generated(self, cases: Cases, embeddings: int, k: int) -> Rows:
        """The one list, cut into as many parts as there are embeddings: int64[B, embeddings, k]."""
        return one_list(self, cases, embeddings, k)


@dataclass(frozen=True, eq=False)
class Predictions:
    """M predictions of a step.

    Attributes:
        hidden: [M, D].
        target: int64[M], catalogue rows.
        user: int64[M], whose they are.
    """

    hidden: Tensor
    target: Indices
    user: Indices


class NextItem(Fitted):
    """Learns at each engaged item of a user which one comes next, in a user's latest `max_length` + 1 items."""

    @abstractmethod
    def objective(self, made: Predictions, rng: np.random.Generator) -> Tensor:
        """Mean loss of the predictions."""

    def trainable(self) -> Indices:
        """Users with two items."""
        return np.flatnonzero(self.positives.length > 1)

    def histories(self, cases: Cases) -> Sequences:
        """The engaged items."""
        return Sequences.of_cases(cases).engaged(self.log)

    def loss(self, users: Indices, rng: np.random.Generator) -> tuple[Tensor, int]:
        """See `Fitted.loss`. Histories are encoded in groups of similar length; the predictions go into one loss."""
        hidden, targets, owners = [], [], []
        for group in by_length(self.positives.length[users]):
            rows = self.positives.last(users[group], self._config.max_length + 1)
            real_BT = rows[:, 1:] >= 0
            h_BTD = self.encode(np.where(real_BT, rows[:, :-1], -1))
            hidden.append(h_BTD.flatten(0, 1)[torch.as_tensor(np.flatnonzero(real_BT))])
            targets.append(self.log.item[rows[:, 1:][real_BT]])
            owners.append(users[group][np.nonzero(real_BT)[0]])
        made = Predictions(torch.cat(hidden), np.concatenate(targets), np.concatenate(owners))
        return self.objective(made, rng), len(made.target)
