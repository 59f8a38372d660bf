import pytest

from benchmarks import batches
from benchmarks.batches import Batches
from serving.api import Status
from serving.timings import Timings


class Service:
    """Stands in for the client: Gateways that have worked on some batches."""

    def __init__(self, gateways):
        self.timings = [Timings() for _ in range(gateways)]

    def __call__(self, url):
        assert url == "http://here"
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def status(self):
        busy = Timings()  # Recommenders answer no query
        busy.batch_size.add(1_000)
        busy.add("generate", 100.0)
        parts = {"gateways": [t.report for t in self.timings], "recommenders": [busy.report]}
        made = Status(ready=True, degraded=[], model_version="v000001", users=1, ingestors=[], trainer=None, **parts)
        return Status.model_validate_json(made.model_dump_json())

    def batch(self, gateway, waited_ms, read_ms, encode_ms, generate_ms):
        timings = self.timings[gateway]
        timings.batch_size.add(len(waited_ms))
        for ms in waited_ms:
            timings.add("wait", ms / 1e3)
        for stage, ms in (("read", read_ms), ("encode", encode_ms), ("generate", generate_ms)):
            timings.add(stage, ms / 1e3)


@pytest.fixture
def service(monkeypatch):
    made = Service(2)
    monkeypatch.setattr(batches, "PinRecClient", made)
    return made


def test_a_query_has_its_share_of_its_batch_and_all_of_its_waiting(service):
    taken = Batches("http://here")
    with taken:
        service.batch(0, [2.0, 4.0, 6.0], 1.5, 3.0, 6.0)
        service.batch(1, [8.0], 0.5, 1.0, 2.0)
    assert taken.details == {"queries_in_a_batch": 2.0}
    waiting, reading, encoding, generating, whole = taken.stages
    assert (waiting.value, waiting.unit) == (5.0, "ms"), "mean of four queries, not of two batches"
    assert [stage.value for stage in (reading, encoding, generating)] == [0.5, 1.0, 2.0]
    assert whole.value == 7.0, "what each query of a batch waits for, mean of both batches"
    assert all("share" in stage.name for stage in (reading, encoding, generating))


def test_only_what_was_done_while_it_was_entered_counts_and_rounds_add_up(service):
    taken = Batches("http://here")
    service.batch(0, [100.0] * 9, 100.0, 100.0, 100.0)
    with taken:
        service.batch(0, [1.0], 1.0, 1.0, 1.0)
    service.batch(1, [100.0] * 9, 100.0, 100.0, 100.0)
    with taken:
        service.batch(0, [3.0] * 3, 1.0, 1.0, 1.0)
    assert taken.details == {"queries_in_a_batch": 2.0}
    assert [stage.value for stage in taken.stages] == [2.5, 0.5, 0.5, 0.5, 3.0]
