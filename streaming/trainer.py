"""The periodic trainer: archive and catalogue in, bundles out."""

import logging
import threading
import time
from collections.abc import Collection
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pinrec.bundle import Bundle, BundleError, read_learner
from pinrec.config import GateSettings, GenerationConfig, ModelConfig, TrainingConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.evaluation import prequential
from pinrec.items import Catalogue, Item
from pinrec.popularity import Popularity
from pinrec.registry import Registry, RegistryError
from pinrec.training import Learner
from streaming.archive import Archive
from streaming.candidates import Candidates, Decision, may_go_on
from streaming.catalogue import CatalogueView
from streaming.config import KafkaSettings, StateSettings, TrainerSettings
from streaming.publisher import EventPublisher, PublishError
from streaming.schema import EventCodec, ModelAnnouncement
from streaming.trainer_status import TrainerStatus
from streaming.watch import Watch

log = logging.getLogger(__name__)

COLUMNS = (
    *("partition", "offset", "arrived", "user_id", "item_id", "action", "surface", "timestamp"),
    *("item_type", "query", "feed_id"),
)
_POSITIONS = "archive.positions"


class Trainer:
    """Every `interval_s` goes on from the last weights with what the archive gained, and publishes a bundle.

    Where it stands in the archive is written into each bundle beside the learner's state, so a
    restart goes on from the newest version and neither skips an event nor takes one for new twice.

    The catalogue is what the items topic says. Where that topic is empty, as with a bare log of
    events, it is the items that the events name.
    """

    def __init__(
        self,
        *,
        state: StateSettings,
        kafka: KafkaSettings,
        vocabulary: Vocabulary,
        model: ModelConfig,
        training: TrainingConfig,
        generation: GenerationConfig,
        trainer: TrainerSettings,
        gate: GateSettings | None = None,
        pinned: str | None = None,
        split: Collection[str] = (),
    ) -> None:
        self._kafka, self._vocabulary, self._settings = kafka, vocabulary, trainer
        self._training, self._generation = training, generation
        self._archive, self._registry = Archive(state.archive), Registry(str(state.registry))
        limits = gate or GateSettings()
        self._candidates = Candidates(self._registry, limits, generation)
        self._watch = Watch(Archive(state.archive), Registry(str(state.registry)), vocabulary, limits, pinned)
        self._kept = {*split, *([pinned] if pinned else [])}
        self._new_learner = partial(Learner, model, vocabulary, training, generation.mode)
        self._learner = self._new_learner()
        self._catalogue: CatalogueView | None = None
        self._publisher: EventPublisher | None = None
        self._rows: pa.Table | None = None
        self._positions: dict[int, int] = {}
        self._trained: dict[int, int] = {}
        self._live: Bundle | None = None
        self._unpublished = False
        self._metrics: dict[str, float] = {}
        self._status = TrainerStatus()

    def status(self) -> TrainerStatus:
        """How training stands; may be called from any thread."""
        outcomes = {
            version: {"impressions": of.impressions, "engaged": of.engaged, "rate": of.rate}
            for version, of in self._watch.outcomes.items()
        }
        return replace(
            self._status, outcomes=outcomes, rollbacks=self._watch.rollbacks, watch_trouble=self._watch.trouble
        )

    def run(self, stop: threading.Event) -> None:
        """Train until told to stop. A round that fails is noted, and the next one tried."""
        # In a thread of its own: a bad version should not serve until a long round is over.
        threading.Thread(target=self._watch.run, args=(stop,), name="watch", daemon=True).start()
        self.resume()
        while not stop.is_set():
            began = time.monotonic()
            try:
                self.round()
                self._note(phase="idle" if self._status.version else "waiting for events", error=None)
            except (OSError, RegistryError, BundleError, TimeoutError, ValueError) as error:
                log.exception("a training round failed")
                self._note(phase="idle", error=f"{type(error).__name__}: {error}")
            # Before the first model every second counts; afterwards the interval is from start to start.
            pause = self._settings.interval_s if self._status.version or self._status.refused else 1.0
            stop.wait(max(0.0, began + pause - time.monotonic()))

    def round(self) -> str | None:
        """Train on what is new and publish.

        Returns:
            the new version, or None where nothing changed, events are still too few, or the gate refused it.

        Raises:
            OSError, RegistryError, BundleError: nothing was published; the old version stands, and what was
                learnt is published by the next round.
        """
        if not may_go_on(self._registry, self._status.version):  # the watch or an operator took it back
            self.go_back(self._registry.current())
        self._unpublished |= self._update_catalogue()
        since_row = self._gather()
        if self._rows is None or not len(self._rows):
            return None
        events = EventColumns.of_columns(_columns(self._rows), self._vocabulary)
        self._note(events=len(events))
        first = self._learner.fits == 0
        engaged = events.engaged(self._vocabulary)
        if first and int(engaged.sum()) < self._settings.min_events:
            return None
        new = int(engaged[since_row:].sum())
        if not first and not new and not self._unpublished:
            return None
        catalogue = self._make_catalogue()
        if first or new:
            if self._live is not None and not first:
                self._note(phase="evaluating", step=0, steps=0)
                self._metrics |= self._evaluate(self._live, events, since_row)
            self._train(events, catalogue, self._steps(first, new), 0 if first else since_row)
        self._note(phase="publishing")
        return self._publish(events, catalogue, since_row, {k: v for k, v in self._metrics.items() if np.isfinite(v)})

    def _train(self, events: EventColumns, catalogue: Catalogue, steps: int, since_row: int) -> None:
        self._note(phase="training", step=0, steps=steps)
        fit = self._learner.fit(events, catalogue, steps, self._progress, since_row)
        if fit.steps:
            self._metrics |= {"loss": fit.loss, "events_per_s": fit.events_per_s}
        # From here on the learner knows these events, whether or not they can be published.
        self._trained, self._unpublished = dict(self._positions), True

    def _evaluate(self, live: Bundle, events: EventColumns, since_row: int) -> dict[str, float]:
        """Predict the new events with the version that serves, before anything is trained on them."""
        return prequential(
            live.model,
            live.table,
            live.catalogue,
            events,
            since_row,
            mode=live.manifest.mode,
            steps=self._generation.steps,
            outcomes=live.outcomes,
            search=live.index.search,
        )

    def _steps(self, first: bool, new: int) -> int:
        if first:
            return self._training.initial_steps
        # About two passes over the new events; more would learn the last minutes by heart.
        per_step = self._training.batch_users * 4
        return max(1, min(self._training.round_steps, 2 * new // per_step))

    def _publish(
        self, events: EventColumns, catalogue: Catalogue, since_row: int, metrics: dict[str, float]
    ) -> str | None:
        trained_until = float(events.arrived.max())
        try:
            bundle = Bundle.of(
                self._learner.model,
                catalogue,
                Popularity.of(events, catalogue, self._vocabulary),
                mode=self._generation.mode,
                outcomes=self._generation.default_outcomes or _frequencies(events, self._vocabulary),
                metrics=metrics,
                trained_until=trained_until,
            )
        except BundleError as error:
            self._refused(self._candidates.refused(error))
            return None
        positions = torch.tensor(sorted(self._trained.items()), dtype=torch.int64).reshape(-1, 2)
        learner = self._learner.state() | {_POSITIONS: positions}
        parent = self._status.version
        decision = self._candidates.offer(bundle, learner, self._live, parent, events, since_row)
        if decision.refusals:
            self._refused(decision)
            return None
        version = decision.version
        self._live, self._unpublished, self._metrics = bundle, False, {}
        self._note(version=version, trained_until=trained_until, metrics=metrics, rounds=self._status.rounds + 1)
        self._announce(version, trained_until, metrics)
        self._prune()
        return version

    def _refused(self, decision: Decision) -> None:
        """What made the candidate must not go into the next one."""
        refused = self._status.refused + 1
        last = {"version": decision.version, "refusals": [refusal.model_dump() for refusal in decision.refusals]}
        self._note(refused=refused, last_refused=last)
        self.go_back(self._status.version if may_go_on(self._registry, self._status.version) else None)
        self._prune()

    def _prune(self) -> None:
        self._registry.prune(self._settings.keep_versions, pinned=self._kept | self._watch.kept)
        self._archive.purge()

    def go_back(self, version: str | None) -> None:
        """Forget what was learnt since a version; the events of that time are not trained on again.

        Args:
            version: None = the registry's current one; where there is none training begins anew, with all events.

        Raises:
            RegistryError, OSError, BundleError: the version cannot be loaded; nothing has changed.
        """
        version = version or self._registry.current()
        state = read_learner(self._registry.folder(version)) if version else None
        live = self._registry.load(version) if version else None
        self._learner, self._live, self._metrics = self._new_learner(), live, {}
        if state is None:
            self._trained = {}
        else:
            state.pop(_POSITIONS)
            self._learner.load_state(state)
        # The catalogue may have changed since; the next round publishes it, whether or not there are new events.
        self._unpublished = version is not None
        self._note(version=version, trained_until=live.manifest.trained_until if live else None)
        log.warning("training goes back to %s", version or "the beginning")

    def _announce(self, version: str, trained_until: float, metrics: dict[str, float]) -> None:
        """Tell the world; replicas watch the registry's pointer, so Kafka being down delays nobody."""
        try:
            if self._publisher is None:
                self._publisher = EventPublisher(self._kafka, EventCodec(self._vocabulary))
            announcement = ModelAnnouncement(
                version=version, created_at=time.time(), trained_until=trained_until, metrics=metrics
            )
            self._publisher.send(self._kafka.models, version, announcement)
            self._publisher.flush(timeout_s=10)
        except (OSError, PublishError) as error:
            log.warning("version %s is published, but not announced on %s: %s", version, self._kafka.models, error)

    def _update_catalogue(self) -> bool:
        try:
            if self._catalogue is None:
                self._catalogue = CatalogueView(self._kafka, self._learner.config.content_width)
            return self._catalogue.update()
        except (OSError, TimeoutError) as error:  # Kafka is down: go on with the catalogue as it was last
            log.warning("the catalogue is not up to date: %s", error)
            return False

    def _make_catalogue(self) -> Catalogue:
        if self._catalogue is not None and self._catalogue.complete and self._catalogue.items:
            return Catalogue.of(list(self._catalogue.items.values()), self._learner.config)
        if (self._catalogue is None or not self._catalogue.complete) and self._live is not None:
            return self._live.catalogue  # Kafka has not answered since this process started
        assert self._rows is not None
        is_item = pc.equal(self._rows["item_type"], "item")
        named = pc.unique(self._rows["item_id"].filter(is_item)).to_pylist()
        return Catalogue.of([Item(item_id) for item_id in named], self._learner.config)

    def _gather(self) -> int:
        """Take in what the archive gained; the row at which what is not trained on yet begins."""
        new = self._archive.read(after=self._positions, columns=COLUMNS)
        forgotten = self._archive.deletions(after=self._positions) if self._rows is not None else []
        if self._rows is None:
            # After a restart everything is read at once: what the last version knew comes first.
            trained = np.zeros(len(new), np.bool_)
            for partition, position in self._trained.items():
                ours = new["partition"].to_numpy() == partition
                trained |= ours & (new["offset"].to_numpy() < position)
            new = new.take(np.argsort(~trained, kind="stable"))
            old = int(trained.sum())
            rows = new
        else:
            kept = self._rows
            if forgotten:
                kept = kept.filter(pc.invert(pc.is_in(kept["user_id"], pa.array(forgotten))))
            old = self._untrained_from(kept)
            rows = pa.concat_tables([kept, new])
        for partition in pc.unique(new["partition"]).to_pylist():
            offsets = new["offset"].filter(pc.equal(new["partition"], partition))
            self._positions[partition] = max(self._positions.get(partition, 0), pc.max(offsets).as_py() + 1)
        surplus = max(0, len(rows) - self._settings.max_events)
        self._rows = rows.slice(surplus).combine_chunks()
        return max(0, old - surplus)

    def _untrained_from(self, rows: pa.Table) -> int:
        """First row that is not trained on: one without anything engaged leaves its rows behind."""
        partition, offset = rows["partition"].to_numpy(), rows["offset"].to_numpy()
        trained_to = np.zeros(int(partition.max(initial=0)) + 1, np.int64)
        for number, position in self._trained.items():
            if number < len(trained_to):
                trained_to[number] = position
        fresh = np.flatnonzero(offset >= trained_to[partition])
        return int(fresh[0]) if len(fresh) else len(rows)

    def resume(self) -> None:
        """Go on from the registry's current version, if there is one that fits. Once, before the first round."""
        try:
            version = self._registry.current()
            state = read_learner(self._registry.folder(version)) if version else None
            if version is None or state is None:
                return
            live = self._registry.load(version)
            positions = state.pop(_POSITIONS)
            self._learner.load_state(state)
            self._trained = {int(partition): int(position) for partition, position in positions.tolist()}
            self._live = live
            self._note(version=version, trained_until=self._live.manifest.trained_until)
            log.info("training goes on from %s", version)
        except (ValueError, KeyError, OSError, RegistryError) as error:
            log.warning("training begins anew, the current version cannot be gone on from: %s", error)
            self._learner = self._new_learner()  # half a state may have been loaded

    def _progress(self, step: int, steps: int, loss: float) -> None:
        self._note(step=step, steps=steps, loss=loss)

    def _note(self, **changes: object) -> None:
        self._status = replace(self._status, **changes)  # type: ignore[arg-type]


def _columns(rows: pa.Table) -> dict[str, object]:
    numbers = ("timestamp", "arrived")
    return {
        name: rows[name].to_numpy() if name in numbers else rows[name].combine_chunks()
        for name in rows.column_names
        if name not in ("partition", "offset")
    }


def _frequencies(events: EventColumns, vocabulary: Vocabulary) -> dict[str, float]:
    """Shares of the outcomes among engaged events."""
    counts = np.bincount(events.action[events.engaged(vocabulary)], minlength=len(vocabulary.actions))
    return {name: float(n) for name in vocabulary.outcomes if (n := counts[vocabulary.action_index[name]])}
