"""Settings of everything between Kafka and the archive."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pinrec.config import Frozen

TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")]


class KafkaSettings(Frozen):
    """Where the log is and how its topics are made."""

    bootstrap: str | None = Field(
        None, description="host:port[,host:port]; none = `pinrec` starts a local broker on 127.0.0.1"
    )
    local_port: int = Field(9_092, ge=0, le=65_535, description="of that local broker; 0 = any free one")
    partitions: int = Field(8, ge=1, le=1024, description="of the event topic, when it is created")
    replication: int = Field(1, ge=1, description="copies of each partition, when topics are created")
    events: TopicName = "pinrec.events"
    items: TopicName = "pinrec.items"
    recommendations: TopicName = "pinrec.recommendations"
    models: TopicName = "pinrec.models"
    dead_letters: TopicName = "pinrec.dead-letters"
    security: dict[str, str] = Field(
        default_factory=dict,
        description="passed to kafka-python: security_protocol, sasl_mechanism, ssl_cafile, ...",
    )


class IngestSettings(Frozen):
    """The event path: Kafka -> sequence store + archive -> generation."""

    group: str = Field("pinrec-ingest", min_length=1, description="consumer group")
    max_poll_records: int = Field(5_000, ge=1, description="of one transaction, at most")
    fetch_max_wait_ms: int = Field(
        50, ge=1, description="how long the broker may hold an empty fetch; records end it at once"
    )
    session_timeout_ms: int = Field(10_000, ge=1_000)
    stalled_after_s: float = Field(15.0, gt=0, description="a position that stands this long while its end grows")
    max_future_s: float = Field(300.0, ge=0)
    max_bad_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="of a minute's events; more dead letters than this halt ingestion. 1 = never",
    )
    min_bad_events: int = Field(100, ge=1, description="fewer bad events in a minute never halt ingestion")
    archive_rows: int = Field(20_000, ge=1, description="rows of one archive file at most")
    archive_flush_s: float = Field(5.0, gt=0, description="age at which a smaller file is written")
    generate: bool = Field(True, description="generate on every engaged event")


class TrainerSettings(Frozen):
    """The periodic trainer."""

    enabled: bool = True
    interval_s: float = Field(60.0, gt=0)
    min_events: int = Field(1_000, ge=2, description="engaged events before the first model is trained")
    max_events: int = Field(2_000_000, ge=2, description="newest archived events that training looks at")
    keep_versions: int = Field(5, ge=3)
    holdout_share: float = Field(
        0.1, ge=0, le=0.5, description="share of users whose newest events versions are compared on before they train"
    )
    holdout_events: int = Field(
        1_000, ge=1, description="so many of those users' engaged events are held back, at most"
    )
    niceness: int = Field(5, ge=0, le=19, description="of the training thread, above the other processes'")


class StateSettings(Frozen):
    """Where things are kept: everything a restart needs lies below `root`, and models there too or at an address."""

    root: Path = Path(".pinrec")
    registry_url: Annotated[str, Field(pattern=r"^[A-Za-z0-9+_-]+://([^/@?]+(/[^?]*)?|/[^?]+)$")] | None = Field(
        None,
        description="where models are kept, an address that fsspec knows, such as s3://bucket/models; its package and "
        "credentials are found as fsspec and that package find them, never in the address, which logs and the status "
        "show: no user@host, no ?key=. none = <root>/models",
    )
    registry_copies: int = Field(
        4,
        ge=2,
        description="versions of `registry_url` kept on this machine, in <root>/copies, so that they are mapped; "
        "those of the last five minutes too",
    )
    map_gib: float = Field(16.0, gt=0, description="most the sequence store may grow to, GiB of address space")

    @property
    def sequences(self) -> Path:
        """LMDB environment of the sequence store."""
        return self.root / "sequences"

    @property
    def archive(self) -> Path:
        """Parquet files of all applied events."""
        return self.root / "archive"

    @property
    def trainer(self) -> Path:
        """The trainer's checkpoint."""
        return self.root / "trainer"

    @property
    def registry(self) -> Path | str:
        """Model bundles and the pointer to the current one: a folder, or an address."""
        return self.registry_url or self.root / "models"

    @property
    def copies(self) -> Path:
        """Of bundles, where the registry is no folder."""
        return self.root / "copies"
