import json

import pytest

from pinrec.bundle import MODEL
from pinrec.config import Action, Vocabulary
from pinrec.registry import CURRENT, Registry
from pinrec.verdicts import Refusal
from serving.live import LiveBundle
from tests.eventually import eventually
from tests.small_bundle import VOCABULARY, small_bundle, small_items


@pytest.fixture(scope="module")
def bundle():
    return small_bundle(small_items(40))


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "models")


def live_bundle(registry, vocabulary=VOCABULARY, pinned=None, warm=lambda bundle: None):
    return LiveBundle(registry, vocabulary, pinned, warm)


def corrupt(registry, version):
    """Overwrite a byte in the middle of the weights."""
    path = registry.folder(version) / MODEL
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_without_a_version_nothing_is_live(registry):
    live = live_bundle(registry)
    assert not live.refresh()
    assert (live.bundle, live.version, live.trouble) == (None, None, None)


def test_a_new_version_takes_the_place_of_the_old_one(registry, bundle):
    live = live_bundle(registry)
    registry.publish(bundle)
    assert live.refresh()
    in_use = live.bundle
    assert not live.refresh(), "the same version is not loaded again"
    registry.publish(bundle)
    assert live.refresh()
    assert (in_use.version, live.version, live.swaps) == ("v000001", "v000002", 2), (
        "a batch keeps the one it began with"
    )


def test_a_version_is_warmed_before_it_is_live(registry, bundle):
    seen = []
    live = live_bundle(registry, warm=lambda loaded: seen.append((loaded.version, live.version)))
    registry.publish(bundle)
    live.refresh()
    registry.publish(bundle)
    live.refresh()
    assert seen == [("v000001", None), ("v000002", "v000001")]


def test_a_corrupt_version_is_refused_by_name_and_the_old_one_goes_on(registry, bundle):
    live = live_bundle(registry)
    registry.publish(bundle)
    live.refresh()
    corrupt(registry, registry.publish(bundle))
    assert not live.refresh()
    assert live.version == "v000001"
    assert live.refused["v000002"].startswith("hash: model.safetensors")
    assert live.trouble.startswith("v000002 refused: hash")


def test_a_refused_version_is_tried_again_only_after_the_pointer_has_moved(registry, bundle):
    live = live_bundle(registry)
    registry.publish(bundle)
    live.refresh()
    version = registry.publish(bundle)
    whole = (registry.folder(version) / MODEL).read_bytes()
    corrupt(registry, version)
    live.refresh()
    (registry.folder(version) / MODEL).write_bytes(whole)
    assert not live.refresh(), "nobody loads a refused version every second"
    registry.activate("v000001")
    assert not live.refresh()
    assert live.trouble is None, "what serves is what should"
    registry.activate(version)
    assert live.refresh()
    assert (live.version, live.refused, live.trouble) == (version, {}, None)


def test_a_replica_that_starts_while_the_current_version_is_broken_takes_the_newest_that_is_not(registry, bundle):
    for _ in range(2):
        registry.publish(bundle)
    for _ in range(2):
        corrupt(registry, registry.publish(bundle))
    live = live_bundle(registry)
    assert live.refresh()
    assert live.version == "v000002"
    assert live.trouble.startswith("v000004 refused: hash")
    assert not live.refresh(), "the broken one is not tried again"
    registry.publish(bundle)
    assert live.refresh()
    assert (live.version, live.trouble) == ("v000005", None)


@pytest.mark.parametrize("fails", ["older", "load"])
def test_a_replica_without_a_version_looks_for_an_older_one_until_it_finds_one(registry, bundle, monkeypatch, fails):
    registry.publish(bundle)
    corrupt(registry, registry.publish(bundle))
    live, load = live_bundle(registry), registry.load

    def unreadable(version):
        if fails == "load" and version == "v000002":
            return load(version)
        raise OSError("input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(registry, fails, unreadable)
        assert not live.refresh()
        assert live.trouble.startswith("v000002 refused: hash")
    assert live.refresh()
    assert live.version == "v000001"


def test_versions_are_older_by_their_number(registry, bundle, tmp_path):
    claims = tmp_path / "models" / "claims"
    claims.mkdir(parents=True)
    (claims / "v999998").touch()
    registry.publish(bundle)
    corrupt(registry, registry.publish(bundle))
    assert registry.current() == "v1000000"
    live = live_bundle(registry)
    assert live.refresh()
    assert live.version == "v999999"


def test_no_other_version_takes_the_place_of_a_pinned_one(registry, bundle):
    registry.publish(bundle)
    corrupt(registry, registry.publish(bundle))
    live = live_bundle(registry, pinned="v000002")
    assert not live.refresh()
    assert live.version is None


def test_a_version_that_cannot_answer_is_refused(registry, bundle):
    def warm(loaded):
        if loaded.version == "v000002":
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    live = live_bundle(registry, warm=warm)
    registry.publish(bundle)
    live.refresh()
    registry.publish(bundle)
    assert not live.refresh()
    assert live.version == "v000001"
    assert "shapes cannot be multiplied" in live.refused["v000002"]


def test_a_pinned_version_wins_over_the_pointer(registry, bundle):
    registry.publish(bundle)
    registry.publish(bundle)
    live = live_bundle(registry, pinned="v000001")
    assert live.refresh()
    assert live.version == "v000001"
    registry.publish(bundle)
    assert not live.refresh()


def test_a_version_for_another_vocabulary_is_refused(registry, bundle):
    registry.publish(bundle)
    live = live_bundle(registry, Vocabulary(actions=(Action(name="play"),), surfaces=("tv",)))
    assert not live.refresh()
    assert live.refused["v000001"].startswith("vocabulary: trained for other actions")


def test_a_registry_that_cannot_be_read_is_looked_at_again(registry, bundle, tmp_path):
    live = live_bundle(registry)
    registry.publish(bundle)
    live.refresh()
    registry.publish(bundle)
    pointer = tmp_path / "models" / CURRENT
    right = pointer.read_text()
    pointer.write_text("{half")
    assert not live.refresh()
    assert CURRENT in live.trouble
    assert live.version == "v000001"
    pointer.write_text(right)
    assert live.refresh()
    assert (live.version, live.trouble) == ("v000002", None)


def test_a_pointer_to_a_version_that_is_not_there_yet_is_followed_once_it_is(registry, bundle, tmp_path):
    live = live_bundle(registry)
    registry.publish(bundle)
    live.refresh()
    (tmp_path / "models" / CURRENT).write_text(json.dumps({"version": "v000002"}))
    assert not live.refresh()
    assert "v000002" in live.trouble
    registry.publish(bundle)
    assert live.refresh()
    assert live.version == "v000002"


def test_every_replica_takes_what_is_published_and_what_is_gone_back_to(registry, bundle):
    """Though nobody tells them: each looks at the pointer itself."""
    replicas = [live_bundle(Registry(registry.url)) for _ in range(3)]
    for replica in replicas:
        replica.start(poll_s=0.01)
    try:
        for version in ("v000001", "v000002"):
            registry.publish(bundle)
            eventually(lambda wanted=version: {replica.version for replica in replicas} == {wanted}, 20)
        registry.rollback(Refusal(check="operator", message="wrong prices"))
        eventually(lambda: {replica.version for replica in replicas} == {"v000001"}, 20)
    finally:
        for replica in replicas:
            replica.stop()


def test_the_watcher_takes_what_is_published(registry, bundle):
    live = live_bundle(registry)
    live.start(poll_s=0.01)
    try:
        registry.publish(bundle)
        eventually(lambda: live.version == "v000001", 20)
    finally:
        live.stop()
