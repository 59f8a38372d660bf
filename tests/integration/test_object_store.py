"""The registry on an object store that speaks S3: the same path as on a folder."""

import asyncio
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pinrec.bundle_copies
import pinrec.bundle_store
from pinrec.registry import Registry
from pinrec.verdicts import Refusal
from pinrec.versions import RegistryError
from serving.cli import app, main
from serving.cluster import DeployFile
from serving.engine import Engine
from serving.live import LiveBundle
from serving.problems import Problem
from streaming.registry_of import registry_of
from streaming.stores.lmdb import LmdbSequenceStore
from tests.archived_log import ArchivedLog
from tests.eventually import eventually
from tests.reading import recommended
from tests.small_bundle import VOCABULARY, small_bundle, small_history, small_items
from tests.small_trainer import MODEL, new_trainer, without_kafka

DEPLOY = Path(__file__).parents[2] / "deploy" / "local.yaml"

s3fs = pytest.importorskip("s3fs", reason="the dev extra is not installed")
server = pytest.importorskip("moto.server", reason="the dev extra is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the client and of the server, not of ours
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def bundle():
    return small_bundle(small_items(40))


def started(port=0):
    """An object store, and its address."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    running.start()
    return running, "http://{}:{}".format(*running.get_host_and_port())


@pytest.fixture(scope="module")
def endpoint():
    running, address = started()
    yield address
    running.stop()


@pytest.fixture
def url(endpoint, monkeypatch):
    """Address of a registry in a bucket of its own, reached as one in production: by the environment."""
    return bucket_at(endpoint, monkeypatch)


def bucket_at(endpoint, monkeypatch):
    for name, value in (
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"models-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}/pinrec"


def test_publish_load_refuse_roll_back_and_prune(url, bundle, tmp_path):
    registry, reader = Registry(url, cache=tmp_path / "one"), Registry(url, cache=tmp_path / "other")
    assert (reader.current(), reader.versions()) == (None, [])
    for _ in range(3):
        registry.publish(bundle)
    assert reader.load("v000003").version == "v000003"
    registry.refuse([Refusal(check="recall", message="worse")], registry.publish(bundle, activate=False))
    assert reader.rollback(Refusal(check="operator", message="wrong prices")) == registry.current() == "v000002"
    assert [info.state for info in reader.versions()] == ["passed", "passed", "withdrawn", "refused"]
    registry.write_outcomes(b"{}")
    assert reader.read_outcomes() == b"{}"
    assert registry.prune(keep=1, loading_s=0) == ["v000001", "v000003"]
    assert reader.names() == ["v000002", "v000004"]
    assert registry.publish(bundle) == reader.current() == "v000005"


def test_publishers_at_the_same_time_never_write_the_same_version(url, bundle, tmp_path):
    def publish(number):
        return Registry(url, cache=tmp_path / str(number)).publish(bundle)

    with ThreadPoolExecutor(3) as pool:
        versions = list(pool.map(publish, range(6)))
    assert len(set(versions)) == 6
    assert sorted(versions) == Registry(url, cache=tmp_path / "reader").names()


def test_a_replica_follows_the_pointer(url, bundle, tmp_path):
    registry = Registry(url, cache=tmp_path / "one")
    live = LiveBundle(Registry(url, cache=tmp_path / "other"), VOCABULARY, None, lambda loaded: None)
    for version in ("v000001", "v000002"):
        registry.publish(bundle)
        assert live.refresh()
        assert live.version == version
    registry.rollback(Refusal(check="operator", message="wrong prices"))
    assert live.refresh()
    assert live.version == "v000001"


@pytest.fixture
def deploy(url, tmp_path):
    """A deploy file that keeps its models in the object store; nothing of it runs."""
    return deploy_file(url, tmp_path)


def deploy_file(url, folder):
    text = DEPLOY.read_text().replace("port: 8000", "port: 1")
    model = "{" + ", ".join(f"{name}: {value}" for name, value in MODEL.model_dump(exclude_defaults=True).items()) + "}"
    args = f"      state: {{root: {folder / 'state'}, map_gib: 0.1, registry_url: '{url}', registry_copies: 2}}"
    text = text.replace(
        "      state:\n        root: .pinrec", f"{args}\n      model: {model}\n      ignored:\n        x: 1"
    )
    lines = [line for line in text.splitlines() if "ignored:" not in line and "x: 1" not in line]
    file = folder / "deploy.yaml"
    file.write_text("\n".join(lines).replace("bootstrap: null", "bootstrap: 127.0.0.1:9"))
    return file


def with_a_history(settings, user="ada"):
    """What a replica finds in the sequence store."""
    store = LmdbSequenceStore(settings.state.sequences, settings.model.history, settings.model.stride, 0.1)
    changes = [(user, event) for event in small_history(3).events()]
    store.apply(0, 0, len(changes), changes, as_of=time.time())
    store.close()


def test_a_deploy_file_names_it_and_trainer_replicas_and_commands_meet_there(deploy, tmp_path, monkeypatch, capsys):
    without_kafka(monkeypatch.setattr)
    settings = DeployFile.read(deploy).settings
    with_a_history(settings)
    log, training = ArchivedLog(settings.state), new_trainer(settings.state)
    training.resume()
    log.add(60)
    assert training.round() == "v000001"

    async def asked():
        engine = Engine(settings, 0)
        first = await recommended(engine, "ada")
        log.add(40)
        assert training.round() == "v000002"
        await asyncio.to_thread(eventually, lambda: engine._live.version == "v000002")
        second = await recommended(engine, "ada")
        main(lambda: app(["models", "rollback", "--deploy", str(deploy)], standalone_mode=False))
        await asyncio.to_thread(eventually, lambda: engine._live.version == "v000001")
        return first, second, await engine.models()

    first, second, models = asyncio.run(asked())
    assert (first.model_version, second.model_version) == ("v000001", "v000002")
    assert first.source == "model"
    assert [(version.version, version.state) for version in models.versions] == [
        ("v000002", "withdrawn"),
        ("v000001", "passed"),
    ]
    assert f"no application answers; this is {settings.state.registry_url}" in " ".join(capsys.readouterr().out.split())
    log.only(1, 40)
    assert training.round() == "v000003", "the trainer goes on from the version that was gone back to"
    assert not (tmp_path / "state" / "models").exists()


def test_a_machine_fetches_a_version_once_and_keeps_few(url, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(pinrec.bundle_copies, "_IN_USE_S", -5.0)
    fetched, get_file = [], s3fs.S3FileSystem._get_file

    async def counted(self, rpath, *arguments, **options):
        fetched.append(rpath)
        return await get_file(self, rpath, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_get_file", counted)
    s3fs.S3FileSystem.clear_instance_cache()
    publisher = Registry(url, tmp_path / "one", copies=2)
    for _ in range(4):
        publisher.publish(bundle)
    assert publisher.load("v000004").version == "v000004"
    assert fetched == [], "what was written here is here"
    with ThreadPoolExecutor(2) as pool:
        loaded = list(pool.map(lambda _: Registry(url, tmp_path / "other", copies=2).load("v000001"), range(2)))
    assert len(fetched) == len(set(fetched)) > 0
    reader = Registry(url, tmp_path / "other", copies=2)
    for version in ("v000002", "v000001", "v000003"):
        reader.load(version)
    for folder in ("one", "other"):
        (copies,) = (tmp_path / folder).iterdir()
        kept = {path.name for path in copies.glob("v*")}
        assert kept == ({"v000003", "v000004"} if folder == "one" else {"v000001", "v000003"}), "the last two used"
    assert (loaded[0].table == bundle.table).all(), "what goes stays readable to who answers from it"


def test_a_store_that_was_emptied_and_begun_anew_is_not_answered_from_old_copies(url, tmp_path):
    registry, reader = Registry(url, cache=tmp_path / "one"), Registry(url, cache=tmp_path / "other")
    registry.publish(small_bundle(small_items(40), seed=1))
    reader.load("v000001")
    s3fs.S3FileSystem().rm(url, recursive=True)
    other = small_bundle(small_items(40), seed=2)
    assert registry.publish(other) == "v000001"
    assert (reader.load("v000001").table == other.table).all()


def test_an_upload_that_died_is_cleared_away(url, bundle, tmp_path, monkeypatch):
    registry = Registry(url, cache=tmp_path)
    registry.publish(bundle)
    files = s3fs.S3FileSystem()
    for name in ("ids.npy", "table.npy"):
        files.pipe_file(f"{url}/v000002/{name}", b"half")
    registry.prune(keep=3)
    assert files.exists(f"{url}/v000002/ids.npy"), "it may still be written"
    monkeypatch.setattr(pinrec.bundle_store, "ABANDONED_AFTER_S", -5.0)
    registry.prune(keep=3)
    assert not files.exists(f"{url}/v000002/ids.npy")
    assert registry.names() == ["v000001"]


def test_while_the_store_is_away_the_version_that_serves_goes_on_and_it_is_said(tmp_path, monkeypatch):
    without_kafka(monkeypatch.setattr)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    running, address = started()
    url = bucket_at(address, monkeypatch)
    settings = DeployFile.read(deployed := deploy_file(url, tmp_path)).settings
    with_a_history(settings)
    log, stop = ArchivedLog(settings.state), threading.Event()
    log.add(60)
    training = new_trainer(settings.state, interval_s=0.05)
    thread = threading.Thread(target=training.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: training.status().version == "v000001" and training.status().phase == "idle")

        async def asked():
            engine = Engine(settings, 0)
            assert (await engine.status())["behind"] is None
            await asyncio.to_thread(running.stop)
            log.only(1, 40)
            await asyncio.to_thread(eventually, lambda: engine._live.trouble, 60)
            status, models = await engine.status(), await engine.models()
            answer = await recommended(engine, "ada")
            return status, models, answer, await engine.activate("v000001")

        status, models, answer, moved = asyncio.run(asked())
        assert answer.model_version == "v000001"
        assert url in status["behind"]
        assert models.status == moved.status == 503
        for command in (["list"], ["activate", "v000001"], ["rollback"]):
            with pytest.raises((RegistryError, Problem), match="cannot be"):
                app(["models", *command, "--deploy", str(deployed)], standalone_mode=False)
        starts_meanwhile = LiveBundle(registry_of(settings.state), VOCABULARY, None, lambda loaded: None)
        assert not starts_meanwhile.refresh()
        assert url in starts_meanwhile.trouble
        eventually(lambda: training.status().error, 60)
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join(60)


@pytest.mark.parametrize("address", ["carrier-pigeon://models", "dropbox://models"])
def test_an_address_that_nothing_here_can_reach_is_told(address, tmp_path):
    settings = DeployFile.read(deploy_file(address, tmp_path)).settings
    with pytest.raises(RegistryError, match=f"{address} cannot be a registry"):
        registry_of(settings.state)
