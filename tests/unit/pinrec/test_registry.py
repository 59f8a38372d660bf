import os
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import pinrec.bundle_store
from pinrec.bundle import BundleError, IndexEntry
from pinrec.index import ItemIndex
from pinrec.registry import Registry
from pinrec.versions import RegistryError, UnknownVersionError
from tests.registries import registry_on
from tests.small_bundle import small_bundle, small_items

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def bundle():
    return small_bundle(small_items(40))


@pytest.fixture(params=["folder", "object store"])
def registry(request, tmp_path):
    """The same tests on both."""
    with registry_on(request.param, tmp_path) as registry:
        yield registry


def names(registry):
    return [info.version for info in registry.versions()]


def test_an_empty_registry_has_no_current_version(registry):
    assert registry.current() is None
    assert registry.versions() == []
    with pytest.raises(UnknownVersionError, match="none yet"):
        registry.load("v000001")


def test_publish_moves_the_pointer_and_load_gives_what_was_published(registry, bundle):
    version = registry.publish(bundle)
    assert version == registry.current() == "v000001"
    loaded = registry.load(version)
    assert loaded.version == version
    assert (loaded.table == bundle.table).all()
    assert registry.publish(bundle) == registry.current() == "v000002"
    infos = registry.versions()
    assert [(i.version, i.current, i.items, i.metrics) for i in infos] == [
        ("v000001", False, 40, {"recall@10": 0.5}),
        ("v000002", True, 40, {"recall@10": 0.5}),
    ]


def test_what_was_loaded_is_published_again(registry):
    bundle = small_bundle(small_items(600))
    lists = ItemIndex.build(bundle.table, exact_below=0, recall_goal=0.9)
    assert lists.has_lists
    manifest = bundle.manifest.model_copy(update={"index": IndexEntry(**asdict(lists.report)), "golden": ()})
    loaded = registry.load(registry.publish(replace(bundle, index=lists, manifest=manifest)))
    again = registry.load(registry.publish(loaded))
    assert again.version == "v000002"
    for one, other in zip(lists.search(bundle.table[:9], 20), again.index.search(bundle.table[:9], 20), strict=True):
        assert (one == other).all()


def test_another_handle_sees_the_pointer_move(registry, bundle, tmp_path):
    reader = Registry(registry.url, cache=tmp_path / "other")
    assert reader.current() is None
    version = registry.publish(bundle)
    assert reader.current() == version
    assert reader.load(version).version == version


def test_activate_goes_back_and_refuses_unknown_versions(registry, bundle):
    registry.publish(bundle)
    registry.publish(bundle)
    registry.activate("v000001")
    assert registry.current() == "v000001"
    for unknown in ("v000009", "latest", "../v000001", ""):
        with pytest.raises(UnknownVersionError, match="newest versions are: v000001, v000002"):
            registry.activate(unknown)
    assert registry.current() == "v000001"
    assert registry.publish(bundle) == registry.current() == "v000003"


def test_publish_without_activation_leaves_the_pointer(registry, bundle):
    registry.publish(bundle)
    assert registry.publish(bundle, activate=False) == "v000002"
    assert registry.current() == "v000001"


def test_prune_keeps_the_newest_the_current_and_the_pinned(registry, bundle):
    for _ in range(5):
        registry.publish(bundle)
    registry.activate("v000002")
    assert registry.prune(keep=1, pinned=["v000003"], loading_s=0) == ["v000001", "v000004"]
    assert names(registry) == ["v000002", "v000003", "v000005"]
    assert registry.load("v000002").version == "v000002"
    assert registry.publish(bundle) == "v000006"
    with pytest.raises(ValueError, match="keep"):
        registry.prune(keep=0)


def test_of_bundles_without_a_verdict_only_the_newest_of_all_stays(registry, bundle):
    for _ in range(2):
        registry.publish(bundle)
    for _ in range(4):
        registry.publish(bundle, activate=False)
    registry.prune(keep=2, loading_s=0)
    assert names(registry) == ["v000001", "v000002", "v000006"], "it may be judged right now"
    registry.publish(bundle)
    registry.prune(keep=2, loading_s=0)
    assert names(registry) == ["v000002", "v000007"]


def test_a_candidate_takes_the_place_of_its_parent_alone(registry, bundle):
    for _ in range(2):
        registry.publish(bundle)
    registry.activate("v000001")
    version = registry.publish(bundle, activate=False)
    assert registry.advance(version, "v000002").state == "refused"
    assert registry.current() == "v000001", "an operator's choice stands"
    version = registry.publish(bundle, activate=False)
    assert registry.advance(version, "v000001").state == "passed"
    assert registry.current() == version == "v000004"


def test_a_version_number_is_never_used_twice(registry, bundle):
    for _ in range(3):
        registry.publish(bundle)
    registry.activate("v000001")
    registry.prune(keep=1, loading_s=0)
    assert registry.publish(bundle) == "v000004"


def test_pruning_leaves_a_version_that_is_being_written_to_its_publisher(registry, bundle):
    registry.publish(bundle)
    assert Registry(registry.url)._store.claim() == "v000002"
    registry.prune(keep=1, loading_s=0)
    assert registry.publish(bundle) == "v000003"


def test_publishers_at_the_same_time_never_write_the_same_version(registry, bundle):
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(lambda _: Registry(registry.url).publish(bundle), range(8)))
    assert len(set(versions)) == 8
    assert sorted(versions) == names(registry)
    assert registry.current() in versions


def test_the_pointer_never_moves_back_by_a_slow_publisher(registry, bundle, monkeypatch):
    slow = Registry(registry.url)
    monkeypatch.setattr(slow._store, "claim", lambda: "v000001")
    registry._store._fs.makedirs(registry._store._root, exist_ok=True)
    monkeypatch.setattr(registry._store, "claim", lambda: "v000002")
    registry.publish(bundle)
    slow.publish(bundle)
    assert names(registry) == ["v000001", "v000002"]
    assert registry.current() == "v000002"


def test_a_bundle_that_fails_its_checks_is_not_published(registry, bundle, monkeypatch):
    registry.publish(bundle)
    broken = small_bundle(small_items(40))
    broken.table[3] = broken.table[4]
    with pytest.raises(BundleError, match="table"):
        registry.publish(broken)
    assert registry.current() == "v000001"
    assert names(registry) == ["v000001"]


def test_a_damaged_version_is_listed_with_its_problem_and_refused(registry, bundle):
    version = registry.publish(bundle)
    path = f"{registry._store._root}/{version}/manifest.json"
    registry._store._fs.pipe_file(path, registry._store._fs.cat_file(path).replace(b'"items":40', b'"items":41'))
    assert "manifest.json is not as it was written" in registry.versions()[0].problem
    with pytest.raises(BundleError) as error:
        registry.load(version)
    assert error.value.check == "hash"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"version": 3}', b'{"version": "../../etc"}'])
def test_a_damaged_pointer_is_a_clear_error_and_activation_mends_it(registry, bundle, text):
    version = registry.publish(bundle)
    registry._store._fs.pipe_file(f"{registry._store._root}/current.json", text)
    with pytest.raises(RegistryError, match="activate a version anew"):
        registry.current()
    registry.activate(version)
    assert registry.current() == version


def test_a_damaged_copy_is_fetched_again(bundle, tmp_path):
    registry = Registry(f"memory://{uuid.uuid4().hex}/models", cache=tmp_path)
    version = registry.publish(bundle)
    copied = registry.folder(version)
    (copied / "table.npy").write_bytes(b"damaged")
    assert registry.load(version).version == version


def test_what_a_dead_publisher_left_is_cleared_away(bundle, tmp_path):
    registry = Registry(tmp_path)
    registry.publish(bundle)
    left, writing = tmp_path / ".v000002.writing-1", tmp_path / ".v000003.writing-2"
    for folder in (left, writing):
        folder.mkdir()
        (folder / "table.npy").write_bytes(b"half")
    long_ago = time.time() - 7_200
    os.utime(left, (long_ago, long_ago))
    assert names(registry) == ["v000001"]
    registry.prune(keep=3)
    assert not left.exists()
    assert writing.exists()


def test_a_connection_that_breaks_while_it_is_pruned_deletes_nothing(bundle, tmp_path, monkeypatch):
    registry = Registry(f"memory://{uuid.uuid4().hex}/models", cache=tmp_path)
    for _ in range(3):
        registry.publish(bundle)
    info, left, told = MemoryFileSystem.info, [0], 0

    def breaks_once(self, path, **options):
        left[0] -= 1
        if left[0] == 0:
            raise ConnectionResetError(104, "Connection reset by peer")
        return info(self, path, **options)

    monkeypatch.setattr(pinrec.bundle_store, "ABANDONED_AFTER_S", -5.0)
    for call in range(1, 1_000):
        left[0] = call
        with monkeypatch.context() as broken:
            broken.setattr(MemoryFileSystem, "info", breaks_once)
            try:
                assert registry.prune(keep=3) == []
            except RegistryError:
                told += 1
        there = [(version.version, version.stored, version.state) for version in registry.versions()]
        assert there == [(f"v00000{number}", True, "passed") for number in (1, 2, 3)], call
        if left[0] > 0:
            break
    assert told


def test_a_registry_that_is_out_of_reach_is_not_an_empty_one(bundle, tmp_path, monkeypatch):
    registry = Registry(f"memory://{uuid.uuid4().hex}/models", cache=tmp_path)
    version = registry.publish(bundle)

    def away(self, path, **options):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(MemoryFileSystem, "info", away)
    for call in (registry.names, lambda: registry.load(version)):
        with pytest.raises(ConnectionResetError):
            call()


def test_an_upload_that_has_its_manifest_is_never_cleared_away(bundle, tmp_path, monkeypatch):
    url = f"memory://{uuid.uuid4().hex}/models"
    registry = Registry(url, cache=tmp_path)
    registry.publish(bundle)
    monkeypatch.setattr(pinrec.bundle_store, "ABANDONED_AFTER_S", -5.0)
    with monkeypatch.context() as late:
        late.setattr(pinrec.bundle_store.BundleStore, "names", lambda self: [])
        late.setattr(pinrec.bundle_store.BundleStore, "_is_there", lambda self, version: False, raising=False)
        pinrec.bundle_store.BundleStore(url, tmp_path).tidy(keep=3)
    assert registry.names() == ["v000001"]


def test_a_fault_of_tidying_up_is_told_as_one_of_the_registry(registry, bundle, monkeypatch):
    registry.publish(bundle)

    def away(self, keep):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(pinrec.bundle_store.BundleStore, "tidy", away)
    with pytest.raises(RegistryError, match="Connection reset"):
        registry.prune(keep=3)


def test_a_reader_keeps_answering_from_a_version_that_is_pruned(bundle, tmp_path):
    registry = Registry(tmp_path)
    loaded = registry.load(registry.publish(bundle))
    registry.publish(bundle)
    assert registry.prune(keep=1, loading_s=0) == ["v000001"]
    assert (loaded.table == bundle.table).all()


def test_a_store_that_is_out_of_reach_is_not_told_as_a_full_disk(bundle, tmp_path, monkeypatch):
    registry = Registry(f"memory://{uuid.uuid4().hex}/models", cache=tmp_path)

    def away(self, *arguments, **options):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(MemoryFileSystem, "put_file", away)
    with pytest.raises(RegistryError, match=f"reached and takes writes.*{tmp_path}.* free disk space") as told:
        registry.publish(bundle)
    assert "free disk space there" not in str(told.value)


def test_no_disk_space_is_a_clear_error_and_the_pointer_stays(bundle, tmp_path):
    registry = Registry(tmp_path)
    registry.publish(bundle)
    script = (
        "import resource, sys\n"
        "from pinrec.registry import Registry, RegistryError\n"
        "from tests.small_bundle import small_bundle, small_items\n"
        "bundle = small_bundle(small_items(40))\n"
        "for limit in (0, 100, 2_000, 20_000):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    try: Registry(sys.argv[1]).publish(bundle)\n"
        "    except RegistryError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    # A limit of 0 still lets an empty claim through; every one of the four must fail with the remedy.
    assert done.stdout.count("free disk space") == 4, done.stdout + done.stderr
    assert registry.current() == "v000001"
    assert names(registry) == ["v000001"]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
