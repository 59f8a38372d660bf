"""The periodic trainer: archive and catalogue in, bundles out."""

import contextlib
import logging
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor

from pinrec.bundle import Bundle, BundleError, OtherFormatError, read_learner, read_manifest
from pinrec.config import GateSettings, GenerationConfig, ModelConfig, TrainingConfig, Vocabulary
from pinrec.evaluation import outcome_shares, prequential
from pinrec.items import Catalogue
from pinrec.parallel import Group
from pinrec.popularity import Popularity
from pinrec.training import FitResult, Learner
from pinrec.verdicts import Refusal
from pinrec.versions import RegistryError
from streaming.archive import Archive, ArchiveError
from streaming.candidates import Candidates, Decision
from streaming.checkpoint import Plan, Published, TrainerFolder
from streaming.config import KafkaSettings, StateSettings, TrainerSettings
from streaming.publisher import EventPublisher, PublishError
from streaming.registry_of import registry_of
from streaming.schema import EventCodec, ModelAnnouncement
from streaming.trainer_status import TrainerStatus
from streaming.training_catalogue import TrainingCatalogue
from streaming.training_crew import Crew, Order
from streaming.training_log import Reach, RoundEvents, Standing, TrainingLog
from streaming.watch import Watch

log = logging.getLogger(__name__)

_LEAD_EVERY_S = 1.0
_K = 10
_OF_WEIGHTS = ("nan", "norm")


class Trainer:
    """Every `interval_s` goes on from the last weights with what the archive gained, and publishes a bundle.

    A round is a function of the checkpoint, of where its events end and of its catalogue, all of which are on the
    disk before it begins: killed at any moment and started again, the trainer comes to the same weights. Each bundle
    holds a copy of the learner's state too: from the version that the registry points to, where that is not the one
    published last, and where there is no checkpoint.

    What a share of the users did last is held out. Each version is measured on it, beside the one that serves, before
    either was trained on it.

    The catalogue is what the items topic says. Where that topic is empty, as with a bare log of
    events, it is the items that the events name.

    Several processes can make each fit together, with a batch as many times larger: each has a trainer of its own over
    the same state folder, and calls `run`. Rank 0 does all that is not a fit.

    Args:
        group: those processes (`streaming.training_crew`); None = this one trains alone.
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
        group: Group | None = None,
    ) -> None:
        self._crew = Crew(group)
        self._kafka, self._vocabulary, self._settings, self._pinned = kafka, vocabulary, trainer, pinned
        self._model, self._training, self._generation = model, training, generation
        self._archive, self._registry = Archive(state.archive), registry_of(state)
        limits = gate or GateSettings()
        self._candidates = Candidates(self._registry, limits, generation)
        self._watch = Watch(Archive(state.archive), registry_of(state), vocabulary, limits, pinned)
        self._kept = {*split, *([pinned] if pinned else [])}
        self._folder = TrainerFolder(state.trainer)
        self._log = TrainingLog(self._archive, vocabulary, trainer)
        self._new_learner = partial(Learner, model, vocabulary, training, generation.mode)
        self._learner = self._new_learner()
        self._standing = Standing()
        self._unsaved = False
        # Why the learner must be taken back to the version that serves, once that can be done; () = it knows nothing.
        self._give_up: tuple[Refusal, ...] | None = None
        self._published: Published | None = None
        self._live: tuple[str, Bundle] | None = None
        self._catalogue = TrainingCatalogue(kafka, self._folder, model)
        self._items: tuple[str, Catalogue, dict[int, int]] | None = None
        self._refused_items: Catalogue | None = None
        self._publisher: EventPublisher | None = None
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
        """Train until told to stop. A round that fails is noted, and the next one tried.

        Only one trainer of a state folder trains; another one waits until that ends, and says so. In a group it is
        rank 0 that is told to stop; the others return when it does.
        """
        if self._crew.rank:
            self.help()
            return
        self._run(stop)
        self._crew.dismiss()  # after an error the others may be within a step, and end with this process

    def _run(self, stop: threading.Event) -> None:
        while not self.lead():
            self._crew.idle()
            self._note(phase="standing by", error=self.rival)
            if stop.wait(_LEAD_EVERY_S):
                return
        # In a thread of its own: a bad version should not serve until a long round is over.
        threading.Thread(target=self._watch.run, args=(stop,), name="watch", daemon=True).start()
        try:
            resumed = False
            while not stop.is_set():
                began = time.monotonic()
                try:
                    if not resumed:
                        self.resume()
                    resumed = True
                    self.round()
                    self._note(phase="idle" if self._status.version else "waiting for events", error=None)
                except (OSError, RegistryError, BundleError, TimeoutError, ValueError) as error:
                    log.exception("a training round failed")
                    self._note(phase="idle", error=f"{type(error).__name__}: {error}")
                self._crew.idle()
                # Before the first model every second counts; afterwards the interval is from start to start.
                pause = self._settings.interval_s if self._status.version or self._status.refused else 1.0
                stop.wait(max(0.0, began + pause - time.monotonic()))
        finally:
            self.resign()

    def help(self) -> None:
        """Make the fits of the group's leader with it, until it needs no more help. Nothing is written."""
        while (order := self._crew.order()) is not None:
            shared = self._shared(order)
            if self._crew.all_ready(shared is not None) and shared is not None:
                self._note(phase="training", step=0, steps=order.steps, events=len(shared[0].events))
                self._fit(*shared, order)
            self._note(phase="idle")

    def _shared(self, order: Order) -> tuple[RoundEvents, Catalogue] | None:
        """What a round is made of, from the disk, with the learner as it is before it; None where that is not there."""
        try:
            self._folder = TrainerFolder(self._folder.folder)  # which remembers no catalogue
            self._published = self._folder.published()
            self._restore()
            self._log.update()
            plan, catalogue = self._folder.plan(order.round, self._model), self._folder.catalogue(self._model)
            work = self._log.round(self._standing, plan.until) if plan else None
        except (OSError, ValueError, ArchiveError) as error:
            log.warning("round %d cannot be helped with: %s", order.round, error)
            return None
        if work is None or catalogue is None or not order.is_for(work, self._learner.step):
            return None
        return work, catalogue

    def lead(self) -> bool:
        """Become the one trainer of this state folder; False while another one is. Before `resume`."""
        return self._folder.lead()

    def resign(self) -> None:
        """Let another one lead."""
        self._folder.resign()

    @property
    def rival(self) -> str:
        """Why this trainer does not lead."""
        return f"another trainer ({self._folder.leader}) trains in {self._folder.folder}; one at a time can"

    def resume(self) -> None:
        """Go on from the checkpoint, or from the registry's current version. Once, before the first round."""
        self._published = self._folder.published()
        self._restore()
        try:
            self._follow()
        except (RegistryError, OSError) as error:  # each round says so, until it is mended
            log.warning("%s", error)
        if self._published is not None:
            self._note(version=self._published.version)

    def round(self) -> str | None:
        """Train on what is new and publish.

        Returns:
            the new version, or None where nothing changed, events are still too few, or the gate refused it.

        Raises:
            OSError, RegistryError, BundleError: nothing was published; the old version stands, and what was
                learnt is published by the next round.
        """
        self._follow()
        if self._unsaved:
            self._save()
        self._catalogue.update()
        self._log.update()
        self._note(gap=self._gap())
        plan = self._folder.plan(self._standing.rounds + 1, self._model)
        work = self._log.round(self._standing, plan.until) if plan else None
        catalogue = self._folder.catalogue(self._model) if plan else None
        as_of = plan.items if plan else {}
        if catalogue is None or not self._new(work):  # none was begun, or those who did all of it were deleted since
            plan, work = None, self._log.round(self._standing)
            if work is None:
                return None
            catalogue, as_of = self._catalogue.make(work.named, self._published_items())
        assert work is not None
        self._note(events=len(work.events))
        if new := self._new(work):
            if plan is None:
                until = dict(self._log.positions)
                plan = Plan(number=work.after.rounds, until=until, config=self._model, items=as_of)
                self._folder.begin(plan, catalogue)
            self._train(work, catalogue, new)
        if not self._learner.fits or not (self._unpublished or self._is_other(catalogue)):
            return None
        if plan is None:  # what comes next follows this catalogue, here and after a restart
            done = Plan(number=self._standing.rounds, until=self._standing.positions, config=self._model, items=as_of)
            self._folder.begin(done, catalogue)
        return self._publish(work, catalogue, as_of)

    def go_back(self, version: str) -> None:
        """Go on from a version's weights. What was learnt since is given up, with the events it was learnt from.

        Those are never trained on again: they may be why the version that knew them was withdrawn.

        Raises:
            ValueError: the version holds no training state, or one of a model of other sizes.
            RegistryError, OSError: it is not there, or cannot be read.
        """
        standing, state = self._learnt(version)
        learner = self._new_learner()
        learner.load_state(state)
        self._standing = self._standing.gone_back(standing)
        self._learner, self._live, self._metrics = learner, None, {}
        self._unsaved = True
        self._save()
        self._note_published(version, standing.reach)
        log.info("training goes on from %s", version)

    @property
    def _unpublished(self) -> bool:
        """Whether the learner knows more than any version published."""
        return self._published is None or self._published.number != self._standing.rounds

    def _new(self, work: RoundEvents | None) -> int:
        """Engaged events to train on; 0 where there is nothing to do, or too little for a first model."""
        if work is None:
            return 0
        engaged = work.events.engaged(self._vocabulary)
        if not self._learner.fits and int(engaged.sum()) < self._settings.min_events:
            return 0
        return int(engaged[work.since : work.held].sum())

    def _train(self, work: RoundEvents, catalogue: Catalogue, new: int) -> None:
        first = self._learner.fits == 0
        steps = self._steps(first, new)
        self._note(phase="training", step=0, steps=steps)
        try:
            order = Order.of(work, 0 if first else work.since, steps, self._learner.step)
            self._crew.begin(order)
            fit = self._fit(work, catalogue, order)
        except BaseException:
            self._restore()  # half a round is nothing to go on from
            raise
        if fit.steps:
            self._metrics |= {"loss": fit.loss, "events_per_s": fit.events_per_s}
        # From here on the learner knows these events, whether or not they can be published.
        self._standing, self._unsaved = work.after, True
        self._save()

    def _fit(self, work: RoundEvents, catalogue: Catalogue, order: Order) -> FitResult:
        events, group = work.events.before(work.held), self._crew.group
        try:
            return self._learner.fit(events, catalogue, order.steps, self._progress, order.since_row, group=group)
        except Exception as error:
            if group is None:
                raise
            # The others wait within a step: only the end of this process tells them, and a restart makes it good.
            raise RuntimeError("a fit of several processes failed; start all of them again") from error

    def _steps(self, first: bool, new: int) -> int:
        if first:
            return self._training.initial_steps
        # About two passes over the new events; more would learn the last minutes by heart.
        per_step = self._crew.ranks * self._training.batch_users * 4 * (1 - self._training.replay_share)
        return max(1, min(self._training.round_steps, int(2 * new / per_step)))

    def _publish(self, work: RoundEvents, catalogue: Catalogue, as_of: dict[int, int]) -> str | None:
        self._note(phase="publishing")
        try:
            self._prune()  # before anything is written: each life that was cut short has left a bundle
        except (OSError, RegistryError) as error:
            log.warning("old versions are not deleted: %s", error)
        serving = self._serving()
        try:
            decision = self._offer(serving, work, catalogue, as_of)
        except BundleError as error:
            if error.check not in _OF_WEIGHTS:
                raise
            decision = self._candidates.refused(error)
        if decision.refusals:
            self._refused(decision, catalogue)
            return None
        manifest = read_manifest(self._registry.folder(decision.version))
        self._items, self._metrics = (decision.version, catalogue, as_of), {}
        self._note_published(decision.version, self._standing.reach)
        self._note(trained_until=manifest.trained_until, metrics=manifest.metrics, rounds=self._status.rounds + 1)
        self._announce(decision.version, manifest.trained_until, manifest.metrics)
        self._tidy()
        return decision.version

    def _offer(
        self, serving: Bundle | None, work: RoundEvents, catalogue: Catalogue, as_of: dict[int, int]
    ) -> Decision:
        """Make a candidate of what is learnt by now, and let it serve if it may."""
        trained = work.events.before(work.held)
        bundle = Bundle.of(
            self._learner.served(),
            catalogue,
            Popularity.of(work.events, catalogue, self._vocabulary),
            mode=self._generation.mode,
            outcomes=self._generation.default_outcomes or outcome_shares(trained, self._vocabulary),
            trained_until=float(trained.arrived.max(initial=self._status.trained_until or 0.0)),
            items_positions=as_of,
            like=serving if serving is not None and serving.config == self._model else None,
        )
        self._note(phase="evaluating", step=0, steps=0)
        metrics = self._metrics | self._compare(bundle, serving, work)
        bundle = bundle.measured({name: value for name, value in metrics.items() if np.isfinite(value)})
        self._note(phase="publishing")
        # Not what the learner knew before this round: it may know of rounds that were never judged.
        parent, reach = (self._published.version, self._published.reach) if self._published else (None, Reach())
        earlier = work.known_to(reach)
        decision = self._candidates.offer(bundle, self._state(), serving, parent, work.events, earlier)
        if not decision.refusals:
            self._live = (decision.version, bundle)
        return decision

    def _refused(self, decision: Decision, catalogue: Catalogue) -> None:
        """What made the candidate must not go into the next one."""
        refused = self._status.refused + 1
        last = {"version": decision.version, "refusals": [refusal.model_dump() for refusal in decision.refusals]}
        self._note(refused=refused, last_refused=last)
        if _of_itself(decision.refusals):
            self._refused_items = catalogue
        self._give_up = decision.refusals
        self._follow()
        self._tidy()

    def _tidy(self) -> None:
        self._prune()
        self._archive.purge()
        self._archive.merge()

    def _prune(self) -> None:
        if not self._watch.looked:  # after a restart, what may be gone back to is not known yet
            try:
                self._watch.check()
            except (OSError, ValueError, RegistryError, ArchiveError) as error:
                log.warning("old versions are not deleted, the watch has not looked at them: %s", error)
        if self._watch.looked:
            self._registry.prune(self._settings.keep_versions, pinned=self._kept | self._watch.kept)

    def _compare(self, candidate: Bundle, serving: Bundle | None, work: RoundEvents) -> dict[str, float]:
        """Predict what is held out with the version that serves and with the one that is to follow it.

        Neither was trained on it. Items that only one of them has do not count.
        """
        both = candidate.catalogue.hashes
        if serving is not None:
            both = np.intersect1d(both, serving.catalogue.hashes)
        found = self._predict(candidate, work, both)
        metrics = {"prequential_events": found["targets"], f"candidate_recall@{_K}": found[f"recall@{_K}"]}
        return metrics if serving is None else metrics | self._predict(serving, work, both)

    def _predict(self, bundle: Bundle, work: RoundEvents, among: np.ndarray) -> dict[str, float]:
        return prequential(
            bundle.model,
            bundle.table,
            bundle.catalogue,
            work.events,
            work.held,
            _K,
            mode=bundle.manifest.mode,
            steps=self._generation.steps,
            in_turn=self._generation.in_turn,
            outcomes=bundle.outcomes,
            search=bundle.index.search,
            among=among,
        )

    def _serving(self) -> Bundle | None:
        """The version that serves, if there is one to be compared with.

        Raises:
            RegistryError, BundleError, OSError: there is, and it cannot be loaded; nothing may pass uncompared.
        """
        version = self._pinned or (self._published.version if self._published else None)
        if version is None:
            return None
        try:
            if self._live is None or self._live[0] != version:
                self._live = (version, self._registry.load(version))
        except OtherFormatError as error:  # no replica of this release can serve it either
            log.warning("%s is not compared with: %s", version, error)
            return None
        bundle = self._live[1]
        return bundle if bundle.vocabulary == self._vocabulary else None

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

    def _is_other(self, catalogue: Catalogue) -> bool:
        """Whether the items topic has said something since the last version."""
        if not self._catalogue.ruled or catalogue is self._refused_items:
            return False
        published = self._published_items()
        return published is None or not catalogue.same_as(published[0])

    def _published_items(self) -> tuple[Catalogue, dict[int, int]] | None:
        """The catalogue of the version published last, and the positions of the items topic that it is as of."""
        if self._published is None:
            return None
        version = self._published.version
        if self._items is None or self._items[0] != version:
            try:
                folder = self._registry.folder(version)
                self._items = (version, Catalogue.load(folder), read_manifest(folder).items_positions)
            except (RegistryError, OSError, ValueError) as error:
                log.warning("the catalogue of %s cannot be read: %s", version, error)
                return None
        return self._items[1:]

    def _gap(self) -> str | None:
        """What the archive lacks, in words."""
        if not (gaps := self._log.gaps):
            return None
        lost, last = sum(gap.next - gap.first for gap in gaps), gaps[-1]
        why = "Kafka had dropped them" if last.expired else "a file is missing"
        return (
            f"the archive lacks {lost} records, and training goes on without them; the last are {last.first} to "
            f"{last.next - 1} of partition {last.partition}: {why}"
        )

    def _follow(self) -> None:
        """Go on from the version that the registry points to, where that is not the one published last.

        Somebody has rolled back or activated another one. Also where the gate has refused what the learner's own
        weights made, and where they are lost.
        """
        current = self._registry.current()
        elsewhere = self._published is None or self._published.version != current
        if current is None:
            if self._give_up:
                self._begin_anew(None)
        elif elsewhere or self._give_up is not None:
            try:
                self.go_back(current)
            except (ValueError, RegistryError) as error:
                self._go_on_without(current, error)
        self._give_up = None

    def _go_on_without(self, current: str, error: Exception) -> None:
        """Go on though the version that serves cannot be gone on from: with the own weights if they are sound.

        Those that were refused in a comparison alone are. To begin anew would be to be refused again each round.
        """
        published, refusals = self._published, self._give_up or ()
        unsound = any(refusal.check in _OF_WEIGHTS for refusal in refusals)
        if not self._learner.fits:
            log.warning("training begins anew, %s cannot be gone on from: %s", current, error)
        elif unsound or (published is not None and self._registry.is_bad(published.version)):
            log.warning("training begins anew, %s cannot be gone on from: %s", current, error)
            self._begin_anew(current)
        else:
            log.warning("training goes on with its own weights, not with those of %s: %s", current, error)
        # What was refused for what it is, is published again only when something has been added to it.
        number = self._standing.rounds if _of_itself(refusals) else published.number if published else -1
        try:
            reach = self._learnt(current)[0].reach
        except (ValueError, RegistryError):
            reach = Reach()
        self._note_published(current, reach, number)

    def _begin_anew(self, current: str | None) -> None:
        """Give up the weights, and the events that the version which serves was not trained on."""
        standing = self._standing.anew()
        if current is not None:
            with contextlib.suppress(ValueError, RegistryError):
                pair = (self._learnt(current)[0].reach, self._standing.reach)
                standing = standing.model_copy(update={"withdrawn": (*standing.withdrawn, pair)})
        self._standing = standing
        self._learner, self._live, self._metrics = self._new_learner(), None, {}
        self._unsaved = True
        self._save()

    def _learnt(self, version: str) -> tuple[Standing, dict[str, Tensor]]:
        """What a version was trained on, as far as this archive has it, and the learner's state.

        Raises:
            ValueError: it does not say.
            RegistryError, OSError: it is not there, or cannot be read.
        """
        state = self._registry.opened(version, read_learner)
        if state is None:
            raise ValueError(f"{version} holds no training state")
        try:
            standing = Standing.taken_from(state)
        except KeyError:
            raise ValueError(f"{version} does not say which events it was trained on") from None
        ends = self._archive.ends()
        if any(position > ends.get(partition, 0) for partition, position in standing.positions.items()):
            log.warning("%s was trained on another archive; all events of this one are new to it", version)
            standing = Standing(rounds=standing.rounds)
        return standing, state

    def _restore(self) -> None:
        """The learner as the checkpoint has it; a new one where there is none, or none that fits."""
        self._learner = self._new_learner()
        if (published := self._published) is not None:
            rounds = max(published.number, published.standing.rounds)
            self._standing = published.standing.anew().model_copy(update={"rounds": rounds})
        else:
            self._standing = Standing()
        state = self._folder.load()
        if state is not None:
            try:
                standing = Standing.taken_from(state)
                self._standing = standing.anew()
                self._learner.load_state(state)
                self._standing = standing
                log.info("training goes on from the checkpoint of round %d", standing.rounds)
            except (ValueError, KeyError) as error:
                log.warning("training begins anew, the checkpoint cannot be gone on from: %s", error)
                self._learner = self._new_learner()  # half a state may have been loaded
        if not self._learner.fits:
            self._give_up = ()

    def _state(self) -> dict[str, Tensor]:
        return self._learner.state() | self._standing.tensors()

    def _save(self) -> None:
        self._folder.save(self._state())
        self._unsaved = False

    def _note_published(self, version: str, reach: Reach, number: int | None = None) -> None:
        number = self._standing.rounds if number is None else number
        self._published = Published(version=version, number=number, reach=reach, standing=self._standing)
        self._folder.note_published(self._published)
        self._note(version=version)

    def _progress(self, step: int, steps: int, loss: float) -> None:
        self._note(step=step, steps=steps, loss=loss)

    def _note(self, **changes: object) -> None:
        self._status = replace(self._status, **changes)  # type: ignore[arg-type]


def _of_itself(refusals: Sequence[Refusal]) -> bool:
    """Whether a candidate was refused for what it is, not for what happened meanwhile."""
    return any(refusal.check != "parent" for refusal in refusals)
