"""The registry on an object store that speaks S3: the same path as on a folder."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from pinrec.registry import Registry
from pinrec.verdicts import Refusal
from serving.live import LiveBundle
from tests.small_bundle import VOCABULARY, small_bundle, small_items

s3fs = pytest.importorskip("s3fs", reason="the dev extra is not installed")
server = pytest.importorskip("moto.server", reason="the dev extra is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the client and of the server, not of ours
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def bundle():
    return small_bundle(small_items(40))


@pytest.fixture(scope="module")
def endpoint():
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def url(endpoint, monkeypatch):
    """Address of a registry in a bucket of its own, reached as one in production: by the environment."""
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
