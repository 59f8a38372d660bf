"""Every size and rate of the model, in one place.

No torch here: the event path validates against the vocabulary and must stay light.
"""

from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Mode = Literal["unconditioned", "outcome", "multi_token"]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:-]+$")]
Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Frozen(BaseModel):
    """Settings never change after they are read, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Action(Frozen):
    """One declared action. An engaging action is an outcome the model can aim at."""

    name: Name
    engaging: bool = True


class Vocabulary(Frozen):
    """The declared actions and surfaces; a position in each tuple is the model's index."""

    actions: tuple[Action, ...] = (
        Action(name="impression", engaging=False),
        Action(name="hide", engaging=False),
        Action(name="search", engaging=False),
        Action(name="click"),
        Action(name="save"),
        Action(name="share"),
    )
    surfaces: tuple[Name, ...] = ("home", "search", "related")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for field, names in (
            ("actions", [a.name for a in self.actions]),
            ("surfaces", list(self.surfaces)),
        ):
            if not names or len(names) != len(set(names)):
                raise ValueError(f"{field}: declare at least one, each name once")
        if not self.outcomes:
            raise ValueError("actions: at least one must be engaging")
        return self

    @cached_property
    def action_index(self) -> dict[str, int]:
        """Action name -> index."""
        return {action.name: i for i, action in enumerate(self.actions)}

    @cached_property
    def surface_index(self) -> dict[str, int]:
        """Surface name -> index."""
        return {name: i for i, name in enumerate(self.surfaces)}

    @cached_property
    def engaging(self) -> frozenset[int]:
        """Indices of the engaging actions."""
        return frozenset(i for i, action in enumerate(self.actions) if action.engaging)

    @cached_property
    def outcomes(self) -> tuple[str, ...]:
        """Names of the engaging actions: what a budget may be spent on."""
        return tuple(action.name for action in self.actions if action.engaging)


class ModelConfig(Frozen):
    """Shape of the model. The defaults fit two cores; the paper's are 12 layers, 12 heads, 768 wide."""

    width: int = Field(64, ge=8, description="D: width of tokens and of item vectors")
    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    history: int = Field(256, ge=2, description="most events of a user that are kept and encoded")
    stride: int = Field(64, ge=1, description="the window's start moves on by this many events")
    local_window: int = Field(
        128, ge=0, description="events that all layers but the last attend to, the latest; 0 = all of them"
    )
    hash_tables: int = Field(2, ge=1, description="k of the multi-hash ID embedding")
    hash_buckets: int = Field(16_384, ge=2, description="rows of each ID table")
    id_width: int = Field(64, ge=2, description="width of the ID embedding, all tables together")
    bag_buckets: int = Field(8_192, ge=2, description="rows of the table of hashed content features")
    bag_size: int = Field(16, ge=1, description="most content features of one item or query")
    bag_width: int = Field(64, ge=1)
    tower: Literal["residual", "mlp"] = Field(
        "residual", description="residual: an item's vector is its ID embedding and what an MLP adds to it"
    )
    bag_gain: float = Field(
        6.0,
        ge=0,
        description="residual: what the mean of the bag is multiplied by to be added as the ID is; 0 = not",
    )
    least_temperature: float = Field(
        0.01,
        gt=0,
        le=1,
        description="inner products are divided by a learned number in training, but by no smaller one",
    )
    content_width: int = Field(0, ge=0, description="length of ItemUpdate.embedding; 0 = none")
    table_dtype: Literal["float32", "int8"] = Field(
        "float32", description="of the item vectors in a bundle; int8 is a quarter of the size"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="of tokens, and of what each part of a block adds")
    inner_dropout: float = Field(
        0.0, ge=0, lt=1, description="of hidden layers (item tower, blocks, output head) and of what attention looks at"
    )
    ranking: bool = Field(False, description="has a ranking head, which scores candidates on the keys of retrieval")
    offsets_s: tuple[float, ...] = Field(
        (0.0, 30.0, 60.0, 180.0), min_length=1, description="time offsets generated in one step, in seconds"
    )
    max_offset_s: float = Field(86_400.0, gt=0, description="longer offsets and pauses count as this")

    def window_of(self, layer: int) -> int:
        """How many events a position of this layer attends to, itself included; 0 = all up to it."""
        return self.local_window if layer + 1 < self.layers else 0

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError("width: must be a multiple of twice the number of heads")
        if self.id_width % self.hash_tables:
            raise ValueError("id_width: must be a multiple of hash_tables")
        if self.stride >= self.history:
            raise ValueError("stride: must be smaller than history")
        if self.bag_gain and self.tower != "residual":
            raise ValueError("bag_gain: is of the residual tower; set it to 0 with tower: mlp")
        return self


class TrainingConfig(Frozen):
    """How the weights are fitted."""

    batch_users: int = Field(
        32, ge=1, description="full windows in one step; as many more where windows are shorter than `window`"
    )
    window: int = Field(64, ge=2, description="events of one training window")
    learning_rate: float = Field(3e-3, gt=0)
    table_rate: float = Field(
        10.0, gt=0, description="learning rate of embedding tables, whose rows are seldom met, of all else's"
    )
    weight_decay: float = Field(0.01, ge=0)
    id_decay: float = Field(
        0.0, ge=0, description="weight decay of the ID tables: an item is what its features say until events say more"
    )
    softmax: Literal["sampled", "exact"] = Field(
        "sampled", description="exact: over the whole catalogue; affordable up to some ten thousand items"
    )
    uniform_negatives: int = Field(512, ge=0, description="drawn per step, shared by the batch (sampled softmax)")
    in_batch_negatives: bool = True
    later_targets: int = Field(
        1, ge=0, description="multi_token: predictions of later events at each position, beside the next"
    )
    feed_relaxation: bool = True
    log_q: bool = True
    fine_tune_share: float = Field(
        0.0, ge=0, le=1, description="last share of the steps that also learns from impressions without engagement"
    )
    fine_tune_surfaces: tuple[Name, ...] = Field(
        (), description="fine-tune on targets of these surfaces; empty: of all"
    )
    impression_weight: float = Field(0.2, ge=0, description="weight of refused impressions in fine-tuning")
    ranking_weight: float = Field(1.0, ge=0, description="weight of the ranking head's loss (model.ranking)")
    action_mask: float = Field(
        0.2, ge=0, lt=1, description="share of the history's actions hidden in training (model.ranking)"
    )
    item_mask: float = Field(0.0, ge=0, lt=1, description="share of the history's items hidden in training")
    averaging: float = Field(
        0.0, ge=0, lt=1, description="share of the running average of the weights that stays at a step; 0 = no average"
    )
    initial_steps: int = Field(500, ge=1, description="steps of the first model")
    round_steps: int = Field(60, ge=1, description="most steps of a later round")
    replay_share: float = Field(
        0.25, ge=0, lt=1, description="share of a later round's batches that is drawn from older events"
    )
    threads: int = Field(1, ge=1, description="torch threads of the trainer")
    seed: int = 0

    @model_validator(mode="after")
    def _can_learn(self) -> Self:
        if not self.uniform_negatives and not self.in_batch_negatives:
            raise ValueError("uniform_negatives: must be at least 1 where in_batch_negatives is off")
        if self.id_decay * self.learning_rate * self.table_rate >= 1:
            raise ValueError(
                "id_decay: times learning_rate and table_rate it must stay below 1, the share a step takes"
            )
        return self


class GenerationConfig(Frozen):
    """How answers are made."""

    mode: Mode = "multi_token"
    steps: int = Field(
        2, ge=1, le=64, description="decode steps; each emits outcomes x offsets embeddings, unless in_turn"
    )
    in_turn: bool = Field(
        False, description="a step aims at one outcome, the next one at the next; more steps then look farther ahead"
    )
    compression: float = Field(0.95, gt=-1, le=1, description="embeddings with a higher cosine are merged")
    overfetch: float = Field(2.0, ge=1, description="candidates fetched per slot before filters")
    rerank: int = Field(
        0,
        ge=0,
        le=50,
        description="candidates for each place that the ranking head scores; 0, or no head: the order of retrieval",
    )
    explore_share: float = Field(
        0.0, ge=0, le=0.5, description="share of a list's places that try out new items nobody has engaged with lately"
    )
    max_k: int = Field(500, ge=1, description="largest k a request may ask for")
    default_outcomes: dict[str, Share] | None = Field(
        None, description="budget when a request names none; None = as frequent as in training"
    )


class GateSettings(Frozen):
    """What a candidate must reach before it serves, and what takes a version back that serves."""

    recall_drop: float = Field(
        0.1, ge=0, le=1, description="largest share of the serving version's recall that a candidate may lose"
    )
    recall_events: int = Field(500, ge=1, description="events both must have predicted before recall is compared")
    recall_confidence: float = Field(
        0.5,
        ge=0.5,
        lt=1,
        description="how sure the gate must be that the loss of recall is larger, one-sided; 0.5: recall_drop alone "
        "decides",
    )
    index_recall: float = Field(0.98, ge=0, le=1, description="least share of the exact best 100 that the index finds")
    users: int = Field(100, ge=20, description="users whose lists are looked at; the most recently active ones")
    diversity: float = Field(
        0.5, ge=0, le=1, description="least share of the distinct items in the serving version's lists to be in theirs"
    )
    item_share: float = Field(
        0.95, gt=0, le=1, description="largest share of their lists that one item may be in, or the serving version's"
    )
    watch_impressions: int = Field(
        2_000, ge=100, description="impressions of the newest versions, and of those before, that are compared"
    )
    watch_drop: float = Field(
        0.1, ge=0, le=1, description="largest share of the engagement rate that the newest versions may lose"
    )
    watch_confidence: float = Field(
        0.99, gt=0.5, lt=1, description="how sure the watch must be that the loss is larger, one-sided"
    )
    settle_s: float = Field(60.0, gt=0, description="a list's engagements count for so long after its first impression")
    watch_interval_s: float = Field(5.0, gt=0, description="how often the watch looks at the archive")
