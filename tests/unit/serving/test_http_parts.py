import asyncio
import gc
import io
import json
import logging
import re
import types
from typing import Annotated

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from rich.console import Console

from serving import problems
from serving.api import Status
from serving.client import ClientError, PinRecClient
from serving.limits import LimitBody
from serving.metrics import METRICS, render
from serving.problems import Problem
from serving.status_view import table_of
from serving.straight import Straight
from serving.timings import STAGE_BOUNDS_MS, STAGES, Timings

MOST = 1_000


class Named(BaseModel):
    name: str
    query: Annotated[str, Field(max_length=5)] = ""


async def straight(named):
    if named.name == "busy":
        raise Problem(503, "later", retry_after_s=7)
    if named.name == "crash":
        raise RuntimeError("something with a secret in it")
    return json.dumps(named.name).encode()


def application():
    api = FastAPI()
    api.add_middleware(Straight, path="/straight", body=Named, answer=straight)
    api.add_middleware(LimitBody, most=MOST)
    problems.install(api)

    @api.post("/raw")
    async def raw(request: Request) -> int:
        return len(await request.body())

    @api.post("/straight")
    @api.post("/parsed")
    async def parsed(named: Named) -> str:
        return named.name

    @api.get("/busy")
    async def busy() -> None:
        raise Problem(503, "later", retry_after_s=7)

    @api.get("/crash")
    async def crash() -> None:
        raise RuntimeError("something with a secret in it")

    return api


def call(method, path, **options):
    async def once():
        transport = httpx.ASGITransport(application(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(once())


def chunks(size):
    return pieces_of(b"x" * size, 100)


async def pieces_of(body, size=4):
    for at in range(0, len(body), size):
        yield body[at : at + size]


@pytest.mark.parametrize("path", ["/raw", "/parsed", "/straight"])
@pytest.mark.parametrize("stated", [True, False], ids=["with Content-Length", "without"])
def test_a_body_above_the_bound_is_refused(path, stated):
    body = b"x" * (MOST + 100) if stated else chunks(MOST + 100)
    answer = call("POST", path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["field"] == "body"
    assert "1000 bytes" in answer.json()["detail"]


@pytest.mark.parametrize("stated", [True, False], ids=["with Content-Length", "without"])
def test_a_body_of_just_the_bound_is_taken(stated):
    answer = call("POST", "/raw", content=b"x" * MOST if stated else chunks(MOST))
    assert (answer.status_code, answer.json()) == (200, MOST)


def test_every_error_is_a_problem_detail():
    for answer, status, field in (
        *(
            each
            for path in ("/parsed", "/straight")
            for each in (
                (call("POST", path, json={"name": 3}), 422, "name"),
                (call("POST", path, json={}), 422, "name"),
                (call("POST", path, json={"name": "a", "query": "too long"}), 422, "query"),
                (call("POST", path, content=b"{", headers={"Content-Type": "application/json"}), 400, "body"),
                (call("GET", path), 405, None),
            )
        ),
        (call("POST", "/straight", json={"name": "busy"}), 503, None),
        (call("POST", "/straight", json={"name": "crash"}), 500, None),
        (call("GET", "/nowhere"), 404, None),
        (call("GET", "/crash"), 500, None),
    ):
        assert (answer.status_code, answer.json().get("field")) == (status, field)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert {"type", "title", "status", "detail"} <= set(answer.json())
        assert "secret" not in answer.text


def test_a_problem_carries_when_to_come_back():
    assert call("GET", "/busy").headers["Retry-After"] == "7"
    assert call("POST", "/straight", json={"name": "busy"}).headers["Retry-After"] == "7"


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "\\u00e9"}', '{"name": "\u00e9"}'.encode(), b'{"name": "a", "name": "b"}', b'{"name": NaN}', b"[]",
        b"null", b'"a"', b'{"name": 5}', b'{"name": {}}', b"{}", b'{"name": "a", "query": "too long"}', b"{not json",
        b'{"name": "\xff"}', b'{"name": ' + b"[" * 100_000,
    ],
    ids=str,
)  # fmt: skip
def test_what_goes_straight_to_its_function_is_answered_as_by_the_route_that_describes_it(body):
    as_json = {"Content-Type": "application/json"}
    straight, parsed = (call("POST", path, content=body, headers=as_json) for path in ("/straight", "/parsed"))
    assert straight.status_code == parsed.status_code
    assert straight.headers["Content-Type"] == parsed.headers["Content-Type"]
    if straight.status_code == 400:
        assert straight.json()["field"] == "body"
    elif body.startswith(b"{"):
        assert straight.json() == parsed.json()
    else:
        assert straight.json()["field"] == parsed.json()["field"] == "body"


def test_all_of_a_body_is_read_before_it_goes_straight():
    as_json = {"Content-Type": "application/json"}
    in_pieces = call("POST", "/straight", content=pieces_of(b'{"name": "a"}'), headers=as_json)
    assert (in_pieces.status_code, in_pieces.json()) == (200, "a")


def test_what_a_page_may_post_to_another_site_unasked_does_not_go_straight():
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {"Content-Type": kind} if kind else {}
        assert call("POST", "/straight", content=b'{"name": "a"}', headers=headers).status_code == 422
    charset = {"Content-Type": "application/json; charset=utf-8"}
    assert call("POST", "/straight", content=b'{"name": "a"}', headers=charset).json() == "a"


def test_an_application_below_a_prefix_goes_straight_as_well():
    reached = []

    async def answer(named):
        reached.append(named.name)
        return b"1"

    async def once():
        below = httpx.ASGITransport(Straight(None, "/straight", Named, answer), root_path="/shop")
        async with httpx.AsyncClient(transport=below, base_url="http://test") as client:
            await client.post("/shop/straight", json={"name": "a"})

    asyncio.run(once())
    assert reached == ["a"]


@pytest.mark.parametrize("path", ["/raw", "/parsed", "/straight"])
def test_refused_bodies_are_not_kept(path):
    api = application()

    async def refused(times):
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for _ in range(times):
                answer = await client.post(
                    path, content=chunks(MOST + 100), headers={"Content-Type": "application/json"}
                )
                assert answer.status_code == 413

    asyncio.run(refused(1))
    gc.collect()
    before = sum(type(each) is types.TracebackType for each in gc.get_objects())
    asyncio.run(refused(100))
    gc.collect()
    # Other threads of the process have a few of their own.
    assert sum(type(each) is types.TracebackType for each in gc.get_objects()) <= before + 20


def test_a_caller_who_goes_away_while_he_asks_is_not_answered():
    messages = [{"type": "http.request", "body": b'{"name": ', "more_body": True}, {"type": "http.disconnect"}]
    sent = []

    async def once():
        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        as_json = (b"content-type", b"application/json")
        scope = {"type": "http", "path": "/straight", "method": "POST", "headers": [as_json]}
        await Straight(None, "/straight", Named, straight)(scope, receive, send)

    asyncio.run(once())
    assert (sent, messages) == ([], [])


def test_a_field_that_the_caller_made_up_is_sent_back_short():
    assert len(Problem(422, "unknown", "x" * 100_000).field) <= 200


def counted(stages, sizes):
    """What a replica tells of stages, ms, and of sizes of batches."""
    timings = Timings()
    for stage, values in stages.items():
        for ms in values:
            timings.add(stage, ms / 1e3)
    for size in sizes:
        timings.batch_size.add(size)
    return timings.report


def status(**fields):
    replica = {
        "staleness_ms": 12.5, "queries_answered": 3, "queries_refused": 2, "lists_superseded": 1,
        "lists_generated": 4, "lists_given_up": 0, "waiting_queries": 0,
        "waiting_users": 1, "swaps": 2, "refused": {"v000009": "hash"}, "behind": "v000009 refused: hash",
        "states": {"users": 3, "bytes": 4096, "budget_bytes": 8192, "hits": 7, "misses": 3, "evictions": 0},
        **counted({stage: [1.5, 1.5, 1.5, 6_000.0] for stage in STAGES}, [1, 1, 1, 1]),
        "items": {"changed": 6, "deleted": 2, "left_out": 1, "updates": 9, "bad": 0, "lag": 0, "read_age_s": 0.4},
    }  # fmt: skip
    ingestor = {"applied": 10, "duplicates": 1, "dead_letters": 2, "lag": 5, "owed": 3}
    parts = {"gateways": [replica], "recommenders": [replica], "ingestors": [ingestor, ingestor]} | fields
    return Status(ready=True, degraded=["one thing"], model_version="v000001", users=8, **({"trainer": None} | parts))


def test_every_metric_has_a_value_and_a_meaning():
    text = render(status())
    values = {name: float(value) for name, value in re.findall(r"^(pinrec_\w+) (\S+)$", text, re.M)}
    assert set(values) == set(METRICS) | {"pinrec_batch_size_count", "pinrec_batch_size_sum"}
    for name, meaning in METRICS.items():
        assert f"# HELP {name} {meaning}" in text
    assert values["pinrec_events_applied"] == 20, "over all replicas"
    assert values["pinrec_models_refused"] == 2
    assert values["pinrec_states_hits"] == 14
    assert (values["pinrec_queries_refused"], values["pinrec_lists_superseded"]) == (4, 2)
    assert values["pinrec_staleness_ms"] == 12.5
    assert values["pinrec_items_changed"] == 6, "every replica has the same"
    assert (values["pinrec_items_updates"], values["pinrec_items_read_age_s"]) == (18, 0.4)


def test_stages_and_batches_of_all_replicas_are_one_histogram():
    lines = render(status()).splitlines()
    assert 'pinrec_stage_ms_bucket{le="1",stage="encode"} 0.0' in lines
    assert 'pinrec_stage_ms_bucket{le="2",stage="encode"} 6.0' in lines
    assert 'pinrec_stage_ms_bucket{le="5000",stage="encode"} 6.0' in lines
    assert 'pinrec_stage_ms_bucket{le="+Inf",stage="encode"} 8.0' in lines
    assert 'pinrec_stage_ms_sum{stage="encode"} 12009.0' in lines
    assert 'pinrec_batch_size_bucket{le="1"} 8.0' in lines
    assert "pinrec_batch_size_count 8.0" in lines


def test_a_value_counts_in_the_first_bucket_that_holds_it():
    timings = Timings()
    for ms in (0.0, 1.0, 1.1, 6_000.0):
        timings.add("read", ms / 1e3)
    read = timings.report["stages_ms"]["read"]
    assert list(read["up_to"]) == [*(f"{bound:g}" for bound in STAGE_BOUNDS_MS), "+Inf"]
    assert (read["up_to"]["1"], read["up_to"]["2"], read["up_to"]["5000"], read["up_to"]["+Inf"]) == (2, 3, 3, 4)
    with pytest.raises(ValueError, match="broken"), timings("read"):
        raise ValueError("broken")
    assert timings.report["stages_ms"]["read"] == read, "what failed says nothing of how long it takes"


def test_what_is_counted_is_told_with_its_mean_and_of_nothing_there_is_none():
    report = json.loads(json.dumps(counted({"read": [1.0, 2.0, 6.0]}, [3, 4])))
    read = report["stages_ms"]["read"]
    assert (read["count"], read["mean"], read["sum"]) == (3, pytest.approx(3.0), pytest.approx(9.0))
    assert (report["batch_size"]["count"], report["batch_size"]["mean"]) == (2, 3.5)
    assert report["batch_size"]["up_to"]["2"] == 0
    assert report["stages_ms"]["wait"]["mean"] is None


def test_the_table_says_of_each_replica_where_its_time_goes_and_what_it_did_not_do():
    idle = status().recommenders[0] | {"replica": 1, "model_version": None, "staleness_ms": None} | counted({}, [])
    busy = status().gateways[0] | {"replica": 0, "model_version": "v000001"}
    busy |= counted({"wait": [3.0], "read": [0.5, 1.0], "encode": [2.0], "generate": [4.0, 5.0]}, [2, 5])
    ingestor = {"replica": 0, "applied": 10, "duplicates": 1, "dead_letters": 2, "lag": 5, "owed": 3}
    said = Console(width=200, file=io.StringIO(), record=True)
    said.print(table_of(status(gateways=[busy], recommenders=[busy, idle], ingestors=[ingestor])))
    rows = [line.strip("│ ") for line in said.export_text().splitlines()]
    figures = [
        "mean ms: wait 3.0, read 0.8, encode 2.0, generate 4.5",
        "3.5 in a batch, 70% of histories found encoded",
    ]
    at = next(i for i, row in enumerate(rows) if row.startswith("Gateway 0"))
    assert rows[at].endswith("model v000001, 3 queries answered, 2 refused, staleness 12 ms")
    assert rows[at + 1 : at + 3] == figures
    assert rows[at + 3].endswith("model v000001, 4 lists for events, 1 superseded, 0 given up, staleness 12 ms")
    assert rows[at + 4 : at + 6] == figures
    assert rows[at + 6].endswith("model None, 4 lists for events, 1 superseded, 0 given up, staleness unknown")
    assert rows[at + 7].startswith("Ingestor 0"), "of an idle replica there are no means"


def test_metrics_name_versions_and_the_check_that_a_candidate_failed():
    trainer = {
        "refused": 3,
        "rollbacks": 1,
        "outcomes": {f"v{n:06d}": {"impressions": 100.0 * n, "engaged": 7.0 * n} for n in range(1, 9)},
        "last_refused": {
            "version": "v000009",
            "refusals": [
                {"check": "recall", "figure": 0.1, "bound": 0.2, "message": "worse"},
                {"check": "nan", "figure": None, "bound": None, "message": "not finite"},
            ],
        },
    }
    lines = render(status(trainer=trainer)).splitlines()
    assert "pinrec_candidates_refused 3.0" in lines
    assert "pinrec_rollbacks 1.0" in lines
    assert 'pinrec_version_impressions{version="v000008"} 800.0' in lines
    assert 'pinrec_version_engaged{version="v000004"} 28.0' in lines
    assert not any('{version="v000003"}' in line for line in lines), "few labels: the newest five"
    assert 'pinrec_gate_figure{check="recall",version="v000009"} 0.1' in lines
    assert 'pinrec_gate_bound{check="recall",version="v000009"} 0.2' in lines
    assert 'pinrec_gate_figure{check="nan",version="v000009"} NaN' in lines


def test_staleness_that_nobody_knows_is_not_a_number():
    """Zero would look like perfect freshness to an alert."""
    nobody = render(status(gateways=[], recommenders=[]))
    assert "pinrec_staleness_ms NaN" in nobody
    assert "pinrec_items_read_age_s NaN" in nobody


def answering(response):
    client = PinRecClient("http://test")
    client._http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(lambda request: response))
    return client


def test_the_client_raises_what_the_service_says():
    problem = {"status": 503, "detail": "no model is live yet", "field": "k"}
    with answering(httpx.Response(503, json=problem, headers={"Retry-After": "5"})) as client:
        with pytest.raises(ClientError, match="k: no model is live yet") as refused:
            client.recommend("u1")
        assert (refused.value.status, refused.value.field, refused.value.retry_after_s) == (503, "k", 5.0)


@pytest.mark.parametrize("content", [b"<html>Service Unavailable</html>", b'["a list"]', b"{}"])
def test_an_answer_of_somebody_in_between_is_an_error_too(content):
    response = httpx.Response(502, content=content, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})
    with answering(response) as client, pytest.raises(ClientError) as refused:
        client.status()
    assert (refused.value.status, refused.value.retry_after_s) == (502, None)


def test_nobody_listening_is_one_sentence(caplog):
    caplog.set_level(logging.CRITICAL)
    with (
        PinRecClient("http://127.0.0.1:9", timeout_s=2) as client,
        pytest.raises(ClientError, match=r"http://127\.0\.0\.1:9.*pinrec up") as refused,
    ):
        client.recommend("u1")
    assert refused.value.status == 0


def test_an_id_with_slashes_is_one_part_of_the_path():
    asked = []

    def answer(request):
        asked.append(str(request.url))
        return httpx.Response(200, json={"item_id": "a/b?c", "model_version": "v000001", "items": []})

    client = PinRecClient("http://test")
    client._http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))
    with client:
        assert client.similar("a/b?c", k=3, categories=["r&b", "jazz"]).item_id == "a/b?c"
    assert asked == ["http://test/v1/items/a%2Fb%3Fc/similar?k=3&categories=r%26b&categories=jazz"]
