"""What the registry lets serve: refused and withdrawn versions, rollback, and writers that meet."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from pinrec.registry import Registry
from pinrec.verdicts import Refusal
from pinrec.versions import ForbiddenVersionError, RegistryError
from tests.registries import registry_on
from tests.small_bundle import small_bundle, small_items

WORSE = Refusal(check="outcomes", figure=0.01, bound=0.02, message="users engage less")
UNLIKE = Refusal(check="share", figure=1.0, bound=0.5, message="one item is in every list")


@pytest.fixture(scope="module")
def bundle():
    return small_bundle(small_items(40))


@pytest.fixture(params=["folder", "object store"])
def registry(request, tmp_path):
    """The same tests on both."""
    with registry_on(request.param, tmp_path) as registry:
        yield registry


def states(registry):
    return {info.version: info.state for info in registry.versions()}


def published(registry, bundle, count):
    for _ in range(count):
        registry.publish(bundle)


def test_a_candidate_serves_once_it_has_passed(registry, bundle):
    published(registry, bundle, 1)
    version = registry.publish(bundle, activate=False)
    assert (registry.current(), states(registry)[version]) == ("v000001", "candidate")
    assert registry.advance(version, "v000001").state == "passed"
    assert (registry.current(), states(registry)[version]) == (version, "passed")


def test_a_refused_version_is_listed_with_check_figure_and_bound_and_never_serves(registry, bundle):
    published(registry, bundle, 1)
    version = registry.publish(bundle, activate=False)
    registry.refuse([UNLIKE], version)
    assert registry.advance(version, "v000001").state == "refused"
    assert registry.current() == "v000001"
    (info,) = (info for info in registry.versions() if info.version == version)
    assert (info.state, info.verdict.refusals) == ("refused", (UNLIKE,))
    assert "share: one item is in every list (1, bound 0.5)" in info.verdict.reason
    with pytest.raises(ForbiddenVersionError, match=r"was refused \(share: .*--force"):
        registry.activate(version)
    assert registry.current() == "v000001"


def test_a_candidate_that_could_not_be_stored_is_listed_too(registry, bundle):
    published(registry, bundle, 1)
    version = registry.refuse([Refusal(check="nan", message="model.safetensors has NaN")])
    info = registry.versions()[-1]
    assert (info.version, info.state, info.stored) == (version, "refused", False)
    assert registry.publish(bundle) == "v000003", "its number is not used again"


def test_rollback_goes_to_the_newest_older_version_that_passed_and_withdraws_the_one_left(registry, bundle):
    published(registry, bundle, 2)
    registry.refuse([UNLIKE], registry.publish(bundle, activate=False))
    registry.publish(bundle, activate=False)  # its trainer died before anything was decided
    registry.publish(bundle)
    assert registry.rollback(WORSE) == registry.current() == "v000002"
    assert states(registry) == {
        "v000001": "passed", "v000002": "passed", "v000003": "refused", "v000004": "candidate", "v000005": "withdrawn",
    }  # fmt: skip
    assert registry.advance("v000005", "v000002").state == "withdrawn", "it does not come again by itself"
    assert registry.current() == "v000002"
    registry.publish(bundle)
    assert registry.rollback(WORSE) == "v000002", "nor by a rollback of a later one"
    assert registry.rollback(WORSE) == "v000001"
    with pytest.raises(RegistryError, match="holds no version older than v000001 that passed the gate"):
        registry.rollback(WORSE)
    assert (registry.current(), states(registry)["v000001"]) == ("v000001", "passed")


def test_rollback_over_several_versions_withdraws_them_all(registry, bundle):
    published(registry, bundle, 4)
    assert registry.rollback(WORSE, to="v000002") == "v000002"
    assert states(registry) == {
        "v000001": "passed", "v000002": "passed", "v000003": "withdrawn", "v000004": "withdrawn",
    }  # fmt: skip


def test_an_operator_may_insist_on_a_withdrawn_version(registry, bundle):
    published(registry, bundle, 2)
    registry.rollback(WORSE)
    with pytest.raises(ForbiddenVersionError, match="was withdrawn"):
        registry.activate("v000002")
    registry.activate("v000002", force=True)
    assert registry.current() == "v000002"
    assert registry.verdict("v000002").forced


def test_a_verdict_that_cannot_be_read_lets_nothing_serve(registry, bundle):
    published(registry, bundle, 1)
    version = registry.publish(bundle, activate=False)
    registry.refuse([UNLIKE], version)
    registry._store._fs.pipe_file(registry._store._at("verdicts", f"{version}.json"), b"{half")
    assert registry.advance(version, "v000001").state == "refused"
    assert states(registry)[version] == "refused"


def test_what_a_replica_may_be_loading_is_not_deleted(registry, bundle):
    published(registry, bundle, 4)
    assert registry.prune(keep=1) == [], "each of them was the current one a moment ago"
    assert registry.prune(keep=1, loading_s=0) == ["v000001", "v000002", "v000003"]
    assert list(states(registry)) == ["v000004"]


def test_refused_versions_take_no_place_of_those_that_may_serve(registry, bundle):
    published(registry, bundle, 3)
    for _ in range(4):
        registry.refuse([UNLIKE], registry.publish(bundle, activate=False))
        registry.prune(keep=2, loading_s=0)
    assert states(registry) == {
        "v000002": "passed", "v000003": "passed", "v000006": "refused", "v000007": "refused",
    }  # fmt: skip


def test_a_rollback_and_a_publisher_at_once_never_leave_a_withdrawn_version_serving(tmp_path, bundle):
    registry = Registry(tmp_path)
    published(registry, bundle, 1)
    for _ in range(4):
        left = registry.publish(bundle)
        with ThreadPoolExecutor(2) as pool:
            back = pool.submit(Registry(tmp_path).rollback, WORSE)
            newer = pool.submit(Registry(tmp_path).publish, bundle)
            back.result(), newer.result()
        current = registry.current()
        assert states(registry)[current] == "passed"
        assert "withdrawn" in (states(registry)[left], states(registry)[newer.result()])


def test_a_slow_store_shows_a_version_only_when_all_of_it_is_there(bundle, tmp_path, monkeypatch):
    registry = Registry(f"memory://{uuid.uuid4().hex}/models", cache=tmp_path)
    published(registry, bundle, 1)
    put, reached, go_on = registry._store._fs.put_file, threading.Event(), threading.Event()

    def slow(source, target, **options):
        if target.endswith("table.npy"):
            reached.set()
            assert go_on.wait(30)
        return put(source, target, **options)

    monkeypatch.setattr(registry._store._fs, "put_file", slow)
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(registry.publish, bundle)
        assert reached.wait(30)
        reader = Registry(registry.url, cache=tmp_path)
        assert (reader.current(), list(states(reader))) == ("v000001", ["v000001"])
        reader.activate("v000001")
        go_on.set()
        assert publishing.result() == reader.current() == "v000002"


def test_a_store_that_takes_nothing_is_a_clear_error_and_the_old_version_stands(registry, bundle, monkeypatch):
    published(registry, bundle, 2)

    def readonly(*_, **__):
        raise PermissionError(30, "Read-only file system")

    for name in ("replace", "claim"):
        monkeypatch.setattr(registry._store, name, readonly)
    for act in (
        lambda: registry.publish(bundle),
        lambda: registry.rollback(WORSE),
        lambda: registry.activate("v000001"),
        lambda: registry.refuse([UNLIKE]),
    ):
        with pytest.raises(RegistryError, match=r"cannot be written .*Read-only file system"):
            act()
        assert registry.current() == "v000002"
