"""Outcomes joined by request_id: what counts for which version, and when that is enough to take one back."""

import random
import uuid

import pytest

from pinrec.config import GateSettings, Vocabulary
from pinrec.registry import Registry
from pinrec.verdicts import Refusal
from pinrec.versions import RegistryError
from streaming.archive import Archive, RowBuffer
from streaming.version_outcomes import Comparison, Outcomes, VersionOutcomes, version_of
from streaming.watch import Watch
from tests.small_bundle import small_bundle, small_items

VOCABULARY = Vocabulary()
START = 1_760_000_000.0
LIMITS = GateSettings(watch_impressions=300, settle_s=60)


class Town:
    """Lists of versions and what users did with them, archived."""

    def __init__(self, folder):
        self.archive = Archive(folder)
        self.now = START
        self._next = 0
        self._random = random.Random(5)

    def rows(self, *rows):
        """(seconds from now, action, item, request_id) each."""
        buffer = RowBuffer(0, self._next, 0.0)
        for at, action, item, request in rows:
            place = (buffer.next, self.now + at, uuid.uuid4().hex, "ada", item, action, "home", self.now + at)
            buffer.add((*place, "item", None, None, request, None, False))
            buffer.next += 1
        self.archive.write("events", buffer)
        self._next = buffer.next

    def lists(self, version, count, rate, length=10):
        """So many lists of a version, each item engaged with at this rate; then a while in which they settle."""
        rows = []
        for _ in range(count):
            request = request_of(version)
            rows += [(0, "impression", f"item-{i}", request) for i in range(length)]
            rows += [(1, "click", f"item-{i}", request) for i in range(length) if self._random.random() < rate]
        self.rows(*rows)
        self.now += 100
        self.rows((0, "click", "item-0", None))


def request_of(version):
    return f"{version}.{uuid.uuid4().hex}"


@pytest.fixture
def town(tmp_path):
    return Town(tmp_path / "archive")


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "models")


@pytest.fixture(scope="module")
def bundle():
    return small_bundle(small_items(40))


def counted(town):
    outcomes = VersionOutcomes(town.archive, VOCABULARY, LIMITS.settle_s)
    outcomes.update()
    return {version: (of.lists, of.impressions, of.engaged) for version, of in outcomes.of.items()}


def watch(town, registry, pinned=None):
    return Watch(town.archive, registry, VOCABULARY, LIMITS, pinned)


@pytest.mark.parametrize(
    ("request_id", "version"),
    [
        (f"v000012.{'9f' * 16}", "v000012"),
        (f"v1234567.{'0' * 32}", "v1234567"),
        ("9f" * 16, None),
        (f".{'9f' * 16}", None),
        ("v000012.", None),
        (f"v000012.{'9f' * 16}\n", None),
        (f"v12.{'9f' * 16}", None),
    ],
)
def test_the_id_of_an_answer_names_its_version(request_id, version):
    assert version_of(request_id) == version


def test_an_impression_counts_once_and_is_engaged_with_once(town):
    one, other = request_of("v000001"), request_of("v000002")
    town.rows(
        *((0, "impression", item, one) for item in "aabc"),  # a is shown twice
        (2, "click", "a", one),
        (3, "save", "a", one),
        (4, "click", "z", one),  # never shown
        (5, "hide", "b", one),  # not engaging
        (6, "impression", "c", other),
        (7, "click", "c", "an id of somebody else"),
        (8, "click", "a", None),
        (200, "click", "late", None),
    )
    assert counted(town) == {"v000001": (1, 3, 1), "v000002": (1, 1, 0)}


def test_a_list_counts_when_it_has_settled_and_engagements_after_that_do_not(town):
    request = request_of("v000001")
    outcomes = VersionOutcomes(town.archive, VOCABULARY, LIMITS.settle_s)
    town.rows((0, "impression", "a", request), (0, "impression", "b", request), (59, "click", "a", request))
    assert not outcomes.update()
    assert outcomes.of == {}
    town.rows((61, "click", "b", request))
    assert outcomes.update()
    assert (outcomes.of["v000001"].impressions, outcomes.of["v000001"].engaged) == (2, 1)
    town.rows((300, "click", "b", request), (500, "click", "b", None))
    outcomes.update()
    assert (outcomes.of["v000001"].impressions, outcomes.of["v000001"].engaged) == (2, 1), "too late to count"


def test_counts_go_on_where_they_stood_after_a_restart(town):
    town.lists("v000001", 20, 0.3)
    before = VersionOutcomes(town.archive, VOCABULARY, LIMITS.settle_s)
    before.update()
    restarted = VersionOutcomes(town.archive, VOCABULARY, LIMITS.settle_s)
    restarted.load(before.dump())
    assert restarted.of == before.of
    town.lists("v000001", 20, 0.3)
    restarted.update()
    whole = VersionOutcomes(town.archive, VOCABULARY, LIMITS.settle_s)
    whole.update()
    assert restarted.of == whole.of
    with pytest.raises(ValueError, match="no outcomes"):
        restarted.load(b"[]")


def test_the_variance_is_that_of_lists_and_not_of_places():
    alike = sum((Outcomes(1, 10, e, 100, 10 * e, e * e) for e in [0, 10] * 50), Outcomes())
    mixed = sum((Outcomes(1, 10, 5, 100, 50, 25) for _ in range(100)), Outcomes())
    assert alike.rate == mixed.rate == 0.5
    assert alike.variance == pytest.approx(0.25 / 99), "100 lists, each all or nothing"
    assert mixed.variance == 0.0


def test_few_impressions_take_nothing_back():
    few, many = (sum((Outcomes(1, 10, 0, 100, 0, 0),) * n, Outcomes()) for n in (29, 30))
    good = sum((Outcomes(1, 10, 5, 100, 50, 25),) * 30, Outcomes())
    assert Comparison(("b",), ("a",), few, good).drop(LIMITS) is None
    refusal = Comparison(("b",), ("a",), many, good).drop(LIMITS)
    assert (refusal.check, refusal.figure, refusal.bound) == ("outcomes", 0.0, 0.45)


def test_at_equal_rates_the_watch_is_wrong_as_seldom_as_it_says(town):
    rng = random.Random(3)
    limits = LIMITS.model_copy(update={"watch_drop": 0.0, "watch_confidence": 0.95})

    def one():
        p = rng.choice([0.1, 0.5])  # lists differ: their users do
        e = sum(rng.random() < p for _ in range(10))
        return Outcomes(1, 10, e, 100, 10 * e, e * e)

    wrong = 0
    for _ in range(400):
        new, old = (sum((one() for _ in range(40)), Outcomes()) for _ in range(2))
        wrong += Comparison(("b",), ("a",), new, old).drop(limits) is not None
    assert 0.02 < wrong / 400 < 0.09


def test_a_version_that_users_engage_with_less_is_rolled_back_and_does_not_come_again(town, registry, bundle):
    for _ in range(2):
        registry.publish(bundle)
    watching = watch(town, registry)
    town.lists("v000001", 60, 0.3)
    town.lists("v000002", 20, 0.05)
    assert watching.check() is None, "200 impressions are too few"
    town.lists("v000002", 40, 0.05)
    assert watching.check() == registry.current() == "v000001"
    (refusal,) = registry.verdict("v000002").refusals
    assert refusal.check == "outcomes"
    assert refusal.figure < refusal.bound
    assert registry.advance("v000002", "v000001").state == "withdrawn"
    assert watching.check() is None
    assert watching.rollbacks == 1


def test_versions_too_short_lived_to_be_judged_alone_are_judged_together(town, registry, bundle):
    registry.publish(bundle)
    town.lists("v000001", 60, 0.3)
    watching = watch(town, registry)
    for _ in range(4):
        version = registry.publish(bundle)
        registry.prune(2, watching.kept, loading_s=0)
        town.lists(version, 8, 0.03)
        back = watching.check()
        assert (back is None) == (version != "v000005"), "with the fourth there are 320 impressions"
        assert "v000001" in registry.names(), "what would be gone back to is kept"
    assert registry.current() == "v000001"
    assert [info.state for info in registry.versions()].count("withdrawn") == len(registry.names()) - 1


@pytest.mark.parametrize("why", ["pinned", "forced", "as good"])
def test_what_an_operator_insists_on_and_what_is_as_good_is_left_alone(town, registry, bundle, why):
    for _ in range(2):
        registry.publish(bundle)
    if why == "forced":
        registry.rollback(Refusal(check="operator", message="I do not like it"))
        registry.activate("v000002", force=True)
    town.lists("v000001", 60, 0.3)
    town.lists("v000002", 60, 0.3 if why == "as good" else 0.05)
    assert watch(town, registry, "v000002" if why == "pinned" else None).check() is None
    assert registry.current() == "v000002"


def test_a_rollback_cut_short_before_the_pointer_is_finished(town, registry, bundle, monkeypatch):
    for _ in range(2):
        registry.publish(bundle)

    def full(version, **_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_point", full)
        with pytest.raises((OSError, RegistryError), match="no space left"):
            registry.rollback(Refusal(check="operator", message="wrong prices"))
    assert (registry.current(), registry.is_bad("v000002")) == ("v000002", True)
    assert watch(town, registry).check() == registry.current() == "v000001"


def test_every_list_of_versions_can_show_the_outcomes(town, registry, bundle):
    registry.publish(bundle)
    town.lists("v000001", 30, 0.3)
    first = watch(town, registry)
    first.check()
    again = watch(town, Registry(registry.url))
    again.check()
    assert again.outcomes == first.outcomes
    assert again.outcomes["v000001"].impressions == 300


def test_damaged_outcomes_are_counted_anew_from_the_archive(town, registry, bundle, caplog):
    registry.publish(bundle)
    town.lists("v000001", 30, 0.3)
    registry.write_outcomes(b"[]")
    watching = watch(town, registry)
    watching.check()
    assert watching.outcomes["v000001"].impressions == 300
    assert "outcomes are counted anew from the archive: no outcomes of versions" in caplog.text
