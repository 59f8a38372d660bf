"""Published figures of the baselines, and the configurations that should reproduce them.

All hold under leave-one-out, seen items filtered, the whole catalogue ranked, the validation item in the history at
test time, the epoch selected by NDCG@10 on the validation items.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pinrec.baselines.contender import Contender
from pinrec.baselines.hstu import HSTU, HSTUConfig
from pinrec.baselines.sasrec import SASRec, SASRecConfig
from pinrec.config import Frozen
from pinrec.protocols import Split


@dataclass(frozen=True)
class Published:
    """A public figure of one model on one data set.

    Attributes:
        data: the data set: "amazon_beauty" (5-core, 12,101 items) or "ml1m" (3,416 items).
        hr, ndcg: HR@10 and NDCG@10 on the test items.
        source: the repository the figure and the recipe are from.
        config: the recipe.
        contender: makes the model for a split and a seed.
    """

    data: str
    hr: float
    ndcg: float
    source: str
    config: Frozen
    contender: Callable[[Split, int], Contender]


def _sasrec(data: str, hr: float, ndcg: float, source: str, config: SASRecConfig) -> Published:
    return Published(data, hr, ndcg, source, config, lambda split, seed: SASRec(split, config, seed))


def _hstu(data: str, hr: float, ndcg: float, source: str, config: HSTUConfig) -> Published:
    return Published(data, hr, ndcg, source, config, lambda split, seed: HSTU(split, config, seed))


_BEAUTY: Final = SASRecConfig(
    loss="softmax",
    epochs=200,
    batch_users=512,
    max_length=50,
    learning_rate=5e-4,
    betas=(0.9, 0.999),
    width=64,
    dropout=0.6,
    residual="input",
    attend_padding=True,
)
_ML1M: Final = SASRecConfig(
    loss="softmax",
    epochs=100,
    max_length=200,
    betas=(0.9, 0.999),
    width=64,
    dropout=0.1,
    positions="from_start",
    initial="normal",
)
_BEAUTY_HSTU: Final = HSTUConfig(
    epochs=300,
    batch_users=256,
    max_length=50,
    weight_decay=1e-3,
    width=64,
    blocks=4,
    heads=2,
    attention_width=4,
    value_width=4,
    embedding_dropout=0.4,
    dropout=0.2,
    positions="from_end",
    position_std=0.125,
    negatives=512,
    temperature=0.1,
)

PUBLISHED: Final = {
    "sasrec-softmax-beauty": _sasrec("amazon_beauty", 0.0986, 0.0597, "MTandHJ/CE-SCE-LLMRec", _BEAUTY),
    "sasrec-bce-beauty": _sasrec(
        "amazon_beauty",
        0.0671,
        0.0353,
        "MTandHJ/CE-SCE-LLMRec",
        _BEAUTY.model_copy(update={"loss": "bce", "epochs": 300, "dropout": 0.4}),
    ),
    "sasrec-softmax-ml1m": _sasrec("ml1m", 0.3152, 0.1821, "antklen/sasrec-bert4rec-recsys23", _ML1M),
    "sasrec-bce-ml1m": _sasrec(
        "ml1m", 0.2500, 0.1341, "antklen/sasrec-bert4rec-recsys23", _ML1M.model_copy(update={"loss": "bce"})
    ),
    "hstu-beauty": _hstu("amazon_beauty", 0.0945, 0.0543, "MTandHJ/RecBoard", _BEAUTY_HSTU),
}
