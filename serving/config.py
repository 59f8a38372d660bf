"""The one settings model: the `args:` of a deploy file, validated by Ray Serve when it is deployed."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pinrec.config import Frozen, GateSettings, GenerationConfig, ModelConfig, TrainingConfig, Vocabulary
from streaming.config import IngestSettings, KafkaSettings, StateSettings, TrainerSettings

Version = Annotated[str, Field(pattern=r"^v\d{6,}$")]


class ServingSettings(Frozen):
    """The request path."""

    max_batch: int = Field(32, ge=1, description="users generated for in one batch")
    max_queue: int = Field(512, ge=1, description="queries that may wait in a replica; more get 503")
    deadline_s: float = Field(2.0, gt=0, description="a query that waited longer gets 503")
    event_k: int = Field(20, ge=1, description="length of the lists made for new events")
    degraded_after_s: float = Field(10.0, gt=0, description="staleness above which answers are marked degraded")
    poll_models_s: float = Field(1.0, gt=0, description="how often a replica looks at the registry's pointer")
    threads: int = Field(1, ge=1, description="torch threads of a replica")
    states_mib: int = Field(
        256, ge=0, description="memory for keys and values of users, MiB a replica; 0 = encode every history anew"
    )
    states_dtype: Literal["bfloat16", "float32", "int8"] = Field(
        "int8",
        description="what keys and values are rounded to and kept in; bfloat16 takes nearly twice the memory, float32 "
        "nearly four times",
    )
    handover_s: float = Field(
        5.0,
        ge=0,
        description="before a new version goes live, for how long at most the histories of the most recently active "
        "users are encoded with it; for that time their keys and values take memory twice. 0 = not at all",
    )
    handover_share: float = Field(0.25, gt=0, le=1, description="of one core, taken by that")
    delta_items: int = Field(
        10_000,
        ge=0,
        description="new and changed items that a replica answers with before a model version has them, at most",
    )
    split: dict[Version, Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=dict,
        description="version -> share of the users it answers, always the same; the current version answers the others",
    )
    admin_token_file: Path | None = Field(
        None, description="holds the token for deletions and model changes; none = <state.root>/admin-token"
    )

    @property
    def most_queries(self) -> int:
        """Queries in a replica: all that may wait, and the batch that is worked on."""
        return self.max_queue + self.max_batch


class AppSettings(Frozen):
    """Everything a PinRec application is told."""

    state: StateSettings = StateSettings()
    kafka: KafkaSettings = KafkaSettings()
    vocabulary: Vocabulary = Vocabulary()
    ingest: IngestSettings = IngestSettings()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    generation: GenerationConfig = GenerationConfig()
    trainer: TrainerSettings = TrainerSettings()
    gate: GateSettings = GateSettings()
    serving: ServingSettings = ServingSettings()
    pinned_version: str | None = Field(None, description="serve this version whatever the trainer publishes")

    @model_validator(mode="after")
    def _a_split_leaves_somebody(self) -> Self:
        if (total := sum(self.serving.split.values())) >= 1:
            raise ValueError(f"serving.split: the shares sum to {total:g}; the current version needs some users too")
        return self

    @model_validator(mode="after")
    def _lists_can_be_made(self) -> Self:
        if self.serving.event_k > self.generation.max_k:
            raise ValueError(
                f"serving.event_k: {self.serving.event_k} is more than generation.max_k, {self.generation.max_k}; "
                "lower the one or raise the other"
            )
        return self

    @property
    def local_kafka(self) -> KafkaSettings:
        """Where Kafka is: the address of the local broker where none is named."""
        if self.kafka.bootstrap is not None:
            return self.kafka
        return self.kafka.model_copy(update={"bootstrap": f"127.0.0.1:{self.kafka.local_port}"})
