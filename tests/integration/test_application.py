"""The whole application as its users see it: real broker, real Ray Serve, real HTTP, a model that is trained."""

import contextlib
import json
import subprocess
import sys
import time
from http.client import HTTPConnection
from ipaddress import ip_address
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from ray import serve

from pinrec.bundle import MODEL
from serving.api import RecommendationRequest
from serving.client import ClientError, PinRecClient
from serving.cluster import APP
from serving.problems import Problem
from streaming.schema import ItemUpdate
from tests.eventually import eventually
from tests.running_application import ITEMS, PAST_USERS, TOPICS, Callers, RunningApplication

pytestmark = [pytest.mark.broker, pytest.mark.serve, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def app(broker, tmp_path_factory):
    """One application for all tests; each has users of its own."""
    application = RunningApplication(tmp_path_factory.mktemp("an application"), broker)
    try:
        application.start()
        yield application
    finally:
        application.stop()


def ids(recommendation):
    return [item.item_id for item in recommendation.items]


def topic_of(item_id):
    return TOPICS[int(item_id.removeprefix("item-")) % len(TOPICS)]


def test_before_the_first_model_a_query_is_told_when_to_come_back(app):
    for name in ("recommend", "readyz"):
        answer = app.before_any_model[name]
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert app.before_any_model["healthz"].status_code == 200


@pytest.mark.parametrize("way", ["POST", "publisher"])
def test_an_event_becomes_history_then_a_list_on_the_topic_and_in_answers(app, way):
    user = f"new by {way}"
    event = app.event(user, "item-5", event_id=None)
    if way == "POST":
        (event_id,) = app.client.publish([event])
    else:
        event_id = f"{user} 1"
        app.publisher.publish(event.model_copy(update={"event_id": event_id}))
    history = eventually(lambda: app.history(user))
    assert [(e.event_id, e.item_id, e.action, e.surface, e.timestamp) for e in history.events] == [
        (event_id, "item-5", "click", "home", event.timestamp)
    ]
    (made,) = eventually(lambda: app.received(lambda r: r.user_id == user))
    assert made.sequence.last_event_id == event_id
    assert (made.trigger, made.source, made.degraded) == ("event", "model", False)
    assert 0 <= made.sequence.staleness_ms < 10_000
    assert made.model_version in {info.version for info in app.registry.versions()}
    assert len(made.items) == app.settings.serving.event_k
    answer = app.client.recommend(user, k=8)
    assert (answer.trigger, answer.source, answer.sequence.length) == ("query", "model", 1)
    assert answer.sequence.last_event_id == event_id
    assert answer.request_id != made.request_id
    if answer.model_version == made.model_version:
        assert set(ids(answer)) & set(ids(made)), "the same model on the same history"


def test_impressions_are_kept_but_cause_no_list(app):
    seen = app.publish("looker", "item-1", action="impression")
    eventually(lambda: app.knows(seen))
    clicked = app.publish("looker", "item-1")
    lists = eventually(lambda: app.received(lambda r: r.user_id == "looker"))
    assert [r.sequence.last_event_id for r in lists] == [clicked.event_id]


def test_a_request_shapes_its_list(app):
    seen = [f"item-{i}" for i in range(6)]
    events = [app.publish("shaper", item_id) for item_id in seen]
    eventually(lambda: app.knows(*events))
    plain = app.client.recommend("shaper", k=ITEMS)
    assert set(ids(plain)) == {f"item-{i}" for i in range(ITEMS)} - set(seen), "all that is left, each once"
    everything = app.client.recommend("shaper", k=ITEMS, exclude_seen=False)
    assert len(set(ids(everything))) == ITEMS
    unwanted = ids(plain)[:3]
    assert not set(unwanted) & set(ids(app.client.recommend("shaper", k=20, exclude=unwanted)))
    bread = app.client.recommend("shaper", k=10, categories=["bread"])
    assert len(bread.items) == 10
    assert {topic_of(item_id) for item_id in ids(bread)} == {"bread"}
    for outcome in ("click", "save"):
        answer = app.client.recommend("shaper", k=12, outcomes={outcome: 1.0})
        assert {item.outcome for item in answer.items} == {outcome}
    halves = app.client.recommend("shaper", k=12, outcomes={"click": 0.5, "save": 0.5})
    assert [item.outcome for item in halves.items].count("save") == 6
    for answer in (
        app.client.recommend("shaper", k=3, surface="search"),
        app.client.recommend("shaper", k=3, context={"item_id": "item-9"}),
        app.client.recommend("shaper", k=3, context={"query": "bread and wool"}),
    ):
        assert (len(answer.items), answer.source) == (3, "model")
    assert all(item.title.startswith(topic_of(item.item_id)) for item in plain.items)


def test_an_unknown_user_gets_what_is_popular(app):
    answer = app.client.recommend("never seen", k=10)
    assert (answer.source, answer.sequence.length, len(answer.items)) == ("popular", 0, 10)
    with pytest.raises(ClientError) as unknown:
        app.client.user("never seen")
    assert unknown.value.status == 404


def test_any_printable_id_names_a_user(app):
    for user in ("a/b", "50% off?", "ünïcode ✓"):
        event = app.publish(user, "item-2")
        history = eventually(lambda user=user: app.history(user))
        assert (history.user_id, history.events[0].event_id) == (user, event.event_id)


def test_an_answer_that_is_acted_on_is_found_in_the_archive(app):
    answer = app.client.recommend("answered", k=5)
    app.client.publish(
        [
            app.event("answered", item, request_id=answer.request_id, position=at, feed_id="feed-1")
            for at, item in enumerate(ids(answer)[:2])
        ]
    )

    def rows():
        table = app.archived(["user_id", "item_id", "request_id", "position", "feed_id"])
        return [tuple(row.values()) for row in table.to_pylist() if row["user_id"] == "answered"]

    first, second = ids(answer)[:2]
    eventually(lambda: len(rows()) == 2)
    assert sorted(rows(), key=lambda row: row[3]) == [
        ("answered", first, answer.request_id, 0, "feed-1"),
        ("answered", second, answer.request_id, 1, "feed-1"),
    ]


def test_a_deleted_user_is_gone_from_the_store_the_answers_and_the_disk(app):
    events = [app.publish("forget me", f"item-{i}") for i in range(3)]
    eventually(lambda: app.knows(*events))
    with PinRecClient(app.file.url) as stranger, pytest.raises(ClientError) as refused:
        stranger.delete_user("forget me")
    assert (refused.value.status, refused.value.field) == (401, "authorization")
    assert app.history("forget me")
    app.client.delete_user("forget me")
    eventually(lambda: not app.history("forget me"))
    assert app.client.recommend("forget me").source == "popular"

    def kept():
        try:
            return [
                row
                for path in app.settings.state.archive.rglob("*.parquet")
                for row in pq.read_table(path, columns=["user_id", "deleted"], partitioning=None).to_pylist()
                if row["user_id"] == "forget me" and not row["deleted"]
            ]
        except FileNotFoundError:
            return ["somebody renames"]

    # The trainer takes the rows off the disk when it has trained without them.
    app.publish("somebody else", "item-1")
    eventually(lambda: not kept(), 60)


def test_versions_are_listed_and_activated_by_whoever_holds_the_token(app):
    models = app.client.models()
    assert models.current in {version.version for version in models.versions}
    numbers = [version.version for version in models.versions]
    assert numbers == sorted(numbers, reverse=True), "newest first"
    assert all(version.items and version.trained_until > 0 for version in models.versions)
    with PinRecClient(app.file.url, token="guessed") as stranger, pytest.raises(ClientError) as refused:
        stranger.activate(models.current)
    assert refused.value.status == 401
    for unknown in ("v999999", "../models", "latest"):
        with pytest.raises(ClientError) as refused:
            app.client.activate(unknown)
        assert refused.value.status == 404
    assert app.client.activate(models.current).current == models.current


def test_a_handle_inside_the_cluster_answers_and_refuses_as_http_does(app):
    handle = serve.get_app_handle(APP)
    over_http = app.client.recommend("past-3", k=7)
    by_handle = handle.recommend.remote(RecommendationRequest(user_id="past-3", k=7)).result(timeout_s=20)
    assert (by_handle.source, len(by_handle.items)) == ("model", 7)
    if by_handle.model_version == over_http.model_version:
        assert ids(by_handle) == ids(over_http)
    with pytest.raises(Problem) as refused:
        handle.recommend.remote(RecommendationRequest(user_id="past-3", k=10**6)).result(timeout_s=20)
    with pytest.raises(ClientError) as refused_over_http:
        app.client.recommend("past-3", k=10**6)
    assert (refused.value.status, refused.value.field) == (422, "k")
    assert str(refused_over_http.value) == f"k: {refused.value.detail}"
    with pytest.raises(Problem) as unknown:
        handle.user.remote("nobody").result(timeout_s=20)
    assert unknown.value.status == 404


def test_the_api_describes_itself_and_its_state(app):
    described = app.http.get("/openapi.json").json()
    assert {"/v1/recommendations", "/v1/events", "/v1/models", "/v1/status"} <= set(described["paths"])
    assert "RecommendationRequest" in described["components"]["schemas"]
    assert "swagger" in app.http.get("/docs").text.lower()
    assert app.http.get("/healthz").json() == {"status": "ok"}
    assert app.http.get("/readyz").json()["model_version"].startswith("v")
    metrics = app.http.get("/metrics").text
    assert "pinrec_ready 1.0" in metrics
    assert "# HELP pinrec_lag_events" in metrics
    status = app.client.status()
    assert (status.ready, status.degraded) == (True, [])
    assert status.users >= 20
    assert (len(status.gateways), len(status.recommenders), len(status.ingestors)) == (1, 1, 1)
    assert status.trainer["version"]


def test_all_listens_on_loopback_but_the_port_of_each_replica_for_the_others(app):
    listening = [
        (process.name(), connection.laddr)
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    _, port = app.file.http
    assert [name for name, at in listening if at.port == port] == ["haproxy"]
    local = {at for _, at in listening if ip_address(at.ip.removeprefix("::ffff:")).is_loopback}
    beyond = [name for name, at in listening if at not in local]
    assert len(beyond) == len(set(beyond)) == 4, "one of each deployment"
    assert all(name.startswith("ray::ServeReplica:pinrec:") for name in beyond), beyond


def test_the_admin_socket_of_haproxy_is_its_owners(app):
    running = (process for process in psutil.Process().children(recursive=True) if process.name() == "haproxy")
    haproxy = max(running, key=psutil.Process.create_time)  # one that was replaced may still end
    folder = Path(haproxy.cmdline()[haproxy.cmdline().index("-f") + 1]).parents[1]
    assert folder.stat().st_mode & 0o077 == 0
    sockets = [path for path in folder.rglob("*") if path.is_socket()]
    assert sockets
    assert all(path.stat().st_mode & 0o077 == 0 for path in sockets)


def threads_of(pid):
    """(niceness, CPU ticks so far) of each thread of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            found.append((int(fields[16]), int(fields[11]) + int(fields[12])))
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux tells of threads")
def test_training_gives_way_to_everything_else(app):
    own = psutil.Process().nice()
    status = app.client.status()
    others = [one["pid"] for one in (*status.gateways, *status.recommenders, *status.ingestors)]
    assert {nice for pid in others for nice, _ in threads_of(pid)} == {own}
    trainer = status.trainer["pid"]
    assert psutil.Process(trainer).nice() == own, "it answers Serve as quickly as the others"
    assert {nice for nice, _ in threads_of(trainer)} == {own, min(19, own + app.settings.trainer.niceness)}

    def spent():
        threads, rounds = threads_of(trainer), app.client.status().trainer["rounds"]
        return rounds, *(sum(t for nice, t in threads if (nice > own) is lower) for lower in (True, False))

    rounds, *before = spent()
    for number in range(PAST_USERS):
        app.publish(f"past-{number}", f"item-{number}")
    after = eventually(lambda: (now := spent())[0] > rounds and now[1:], 60, every_s=0.2)
    lower, usual = (b - a for a, b in zip(before, after, strict=True))
    assert lower > usual, f"a round took {lower} ticks of threads that give way and {usual} of others"


EVENT = {"user_id": "u1", "item_id": "item-1", "action": "click", "surface": "home", "timestamp": 1_760_000_000}
RECOMMEND, EVENTS = "/v1/recommendations", "/v1/events"
BAD = {
    "malformed query": (RECOMMEND, b"{not json", 400, "body"),
    "no object": (RECOMMEND, b"[1]", 422, "body"),
    "not UTF-8": (RECOMMEND, b'{"user_id": "\xff"}', 400, "body"),
    "no user": (RECOMMEND, {}, 422, "user_id"),
    "a number as user": (RECOMMEND, {"user_id": 5}, 422, "user_id"),
    "empty user": (RECOMMEND, {"user_id": ""}, 422, "user_id"),
    "user of 10 kB": (RECOMMEND, {"user_id": "x" * 10_000}, 422, "user_id"),
    "control character": (RECOMMEND, {"user_id": "a\nb"}, 422, "user_id"),
    "k of 0": (RECOMMEND, {"user_id": "u1", "k": 0}, 422, "k"),
    "k of a million": (RECOMMEND, {"user_id": "u1", "k": 10**6}, 422, "k"),
    "k as text": (RECOMMEND, {"user_id": "u1", "k": "ten"}, 422, "k"),
    "unknown outcome": (RECOMMEND, {"user_id": "u1", "outcomes": {"fly": 1}}, 422, "outcomes.fly"),
    "negative share": (RECOMMEND, {"user_id": "u1", "outcomes": {"click": -1}}, 422, "outcomes.click"),
    "NaN share": (RECOMMEND, b'{"user_id": "u1", "outcomes": {"click": NaN}}', 422, "outcomes.click"),
    "shares of 0": (RECOMMEND, {"user_id": "u1", "outcomes": {"click": 0, "save": 0}}, 422, "outcomes"),
    "unknown surface of a query": (RECOMMEND, {"user_id": "u1", "surface": "moon"}, 422, "surface"),
    "two contexts": (RECOMMEND, {"user_id": "u1", "context": {"item_id": "a", "query": "b"}}, 422, "context"),
    "unknown field": (RECOMMEND, {"user_id": "u1", "limit": 3}, 422, "limit"),
    "malformed event": (EVENTS, b'{"user_id": ', 400, "body"),
    "event with nothing": (EVENTS, {}, 422, "user_id"),
    "event without item": (EVENTS, {k: v for k, v in EVENT.items() if k != "item_id"}, 422, "item_id"),
    "number as item": (EVENTS, EVENT | {"item_id": 7}, 422, "item_id"),
    "NaN timestamp": (EVENTS, json.dumps(EVENT).replace("1760000000", "NaN").encode(), 422, "timestamp"),
    "negative timestamp": (EVENTS, EVENT | {"timestamp": -1}, 422, "timestamp"),
    "year 9999": (EVENTS, EVENT | {"timestamp": "9999-12-31T23:59:59Z"}, 422, "timestamp"),
    "milliseconds": (EVENTS, EVENT | {"timestamp": 1_760_000_000_000}, 422, "timestamp"),
    "unknown action": (EVENTS, EVENT | {"action": "stare"}, 422, "action"),
    "unknown surface": (EVENTS, EVENT | {"surface": "moon"}, 422, "surface"),
    "event of nobody": (EVENTS, EVENT | {"user_id": ""}, 422, "user_id"),
    "event of a 10 kB user": (EVENTS, EVENT | {"user_id": "x" * 10_000}, 422, "user_id"),
    "one bad event of two": (EVENTS, [EVENT, EVENT | {"action": "stare"}], 422, "1.action"),
    "no events": (EVENTS, [], 422, "events"),
    "too many events": (EVENTS, [EVENT] * 1_001, 422, "events"),
    "1 MiB": (EVENTS, b"[" + b" " * 1024 * 1024 + b"]", 413, "body"),
    "1 MiB query": (RECOMMEND, {"user_id": "x" * 1024 * 1024}, 413, "body"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_field_with_a_remedy(app, name):
    path, body, status, field = BAD[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = app.http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json().get("field")) == (status, field)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert len(answer.json()["detail"]) > 10
    assert len(answer.content) < 1_000, "what was sent does not come back"


def test_of_more_queries_than_can_wait_some_are_told_when_to_come_back_and_all_are_answered(app):
    refused_before = app.client.status().gateways[0]["queries_refused"]
    asked = [HTTPConnection(*app.file.http, timeout=30) for _ in range(15 * app.settings.serving.max_queue)]
    with contextlib.ExitStack() as stack:
        for connection in asked:
            connection.connect()
            stack.callback(connection.close)
        for number, connection in enumerate(asked):
            body = json.dumps({"user_id": f"past-{number % PAST_USERS}", "k": 5})
            connection.request("POST", RECOMMEND, body, {"Content-Type": "application/json"})
        answers = [(answer, json.load(answer)) for answer in map(HTTPConnection.getresponse, asked)]
    refused = [(answer, problem) for answer, problem in answers if answer.status == 503]
    assert refused
    for answer, problem in refused:
        assert (answer.headers["Retry-After"], problem["status"]) == ("1", 503)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "try again" in problem["detail"]
    made = [recommendation for answer, recommendation in answers if answer.status == 200]
    assert len(made) == len(asked) - len(refused)
    assert all(len(recommendation["items"]) == 5 for recommendation in made)
    assert app.client.status().gateways[0]["queries_refused"] - refused_before == len(refused)
    assert app.client.recommend("past-1").source == "model"


def test_nothing_of_a_refused_request_is_published(app):
    good, bad = app.event("half refused", "item-1"), app.event("half refused", "item-1", action="stare")
    with pytest.raises(ClientError):
        app.client.publish([good, bad])
    marker = app.publish("comes after", "item-1")
    eventually(lambda: app.knows(marker))
    assert app.client.status().ingestors[0]["dead_letters"] == 0
    assert app.history("half refused") is None


def test_paths_that_are_not_there_are_problems_too(app):
    for method, path, status in (
        ("GET", f"/v1/users/{'x' * 10_000}", 422),
        ("GET", "/v1/users/", 422),
        ("GET", "/v1/nowhere", 404),
        ("DELETE", "/v1/events", 405),
    ):
        answer = app.http.request(method, path)
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), path


def test_a_minute_of_load_loses_and_refuses_nothing(app):
    users = [f"minute-{i}" for i in range(30)]
    published = dict.fromkeys(users, 0)
    before = app.client.status()
    until = time.monotonic() + 60

    def load(number):
        for user in users[number::3]:
            app.publish(user, f"item-{published[user] % ITEMS}")
            published[user] += 1
        return app.client.recommend(users[number], k=10, exclude_seen=False)  # they have soon seen every item

    with Callers(load).calling() as callers:
        eventually(lambda: callers.failures or time.monotonic() > until, 90, every_s=0.5)
    assert callers.failures == []
    assert all(len(answer.items) == 10 for answer in callers.answers)
    eventually(lambda: [app.history(user).total for user in users] == list(published.values()), 60)
    after = app.client.status()
    assert after.ingestors[0]["dead_letters"] == before.ingestors[0]["dead_letters"]
    assert after.ingestors[0]["applied"] - before.ingestors[0]["applied"] >= sum(published.values())
    assert after.recommenders[0]["lists_given_up"] == before.recommenders[0]["lists_given_up"]
    for user in users:
        newest = app.history(user).events[-1].event_id
        eventually(lambda newest=newest: app.received(lambda r: r.sequence.last_event_id == newest))


def titles_by_version(app):
    return {
        info.version: dict(zip((c := app.registry.load(info.version).catalogue).item_ids, c.titles, strict=True))
        for info in app.registry.versions()
        if info.problem is None
    }


def test_versions_are_swapped_under_load_without_a_failed_request_or_a_mixed_answer(app):
    users = [f"past-{i}" for i in range(8)] + ["never seen"]
    turns = iter(range(10**9))

    def call(number):
        turn = next(turns)
        # Of half of the items: however many turns there are, enough are left that a user has not met.
        app.publish(f"past-{number}", f"item-{turn % (ITEMS // 2)}")
        return app.client.recommend(users[turn % len(users)], k=10)

    started_with = app.client.models().current
    with Callers(call).calling() as callers:
        eventually(lambda: callers.failures or callers.answers)
        live = {started_with}
        while len(live) < 5 and not callers.failures:
            version = app.registry.publish(app.edition(f"edition {len(live)}"))
            # The trainer publishes as well, and may be faster.
            eventually(lambda wanted=version: callers.failures or callers.answers[-1].model_version >= wanted, 60)
            live = {answer.model_version for answer in callers.answers}
        before = len(callers.answers)
        forwards = [[answer.model_version for answer in answers] for answers in callers.of]
        app.client.activate(started_with)
        eventually(lambda: callers.failures or started_with in {a.model_version for a in callers.answers[before:]}, 60)
    assert callers.failures == []
    titles = titles_by_version(app)
    made = app.received(lambda r: r.model_version in live and r.user_id in users)
    for answer in [*callers.answers, *made]:
        assert len(answer.items) == (10 if answer.trigger == "query" else app.settings.serving.event_k)
        assert {item.item_id: item.title for item in answer.items}.items() <= titles[answer.model_version].items()
    assert len({answer.model_version for answer in callers.answers}) >= 5
    assert all(versions == sorted(versions) for versions in forwards), "no answer is older than the one before it"
    assert any("edition" in item.title for answer in callers.answers for item in answer.items)


def test_a_corrupt_version_is_refused_by_name_and_the_old_one_goes_on(app):
    version = app.registry.publish(app.edition("broken"), activate=False)
    weights = app.registry.folder(version) / MODEL
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF
    weights.write_bytes(content)
    before = app.client.models().current

    def refused():
        if app.client.models().current != version:  # the trainer has published since
            app.client.activate(version)
        status = app.client.status()
        return sum(f"{version} refused" in trouble for trouble in status.degraded) == 2 and status

    status = eventually(refused, every_s=0.5, otherwise=app.client.status)
    for replica in status.gateways + status.recommenders:
        assert replica["refused"][version].startswith("hash: model.safetensors")
    assert status.ready
    ready = app.http.get("/readyz").json()
    assert (ready["status"], ready["behind"].partition(":")[0]) == ("ready", f"{version} refused")
    assert "pinrec_replicas_behind 2.0" in app.http.get("/metrics").text
    assert app.client.recommend("past-1").model_version != version
    app.client.activate(before)
    eventually(lambda: not app.client.status().degraded, otherwise=app.client.status)


def test_a_rolled_back_version_does_not_come_again_unless_it_is_forced(app):
    before = app.client.models().current
    version = app.registry.publish(app.edition("regretted"))
    eventually(lambda: app.client.recommend("past-1").model_version >= version)
    listed = app.client.rollback("wrong prices")
    states = {one.version: one for one in listed.versions}
    left = next(one for one in listed.versions if one.state == "withdrawn")
    assert [refusal.message for refusal in left.refusals] == ["wrong prices"]
    assert states[listed.current].state == "passed"
    with pytest.raises(ClientError) as refused:
        app.client.activate(left.version)
    assert (refused.value.status, refused.value.field) == (409, "version")
    assert "force" in str(refused.value)
    assert app.client.activate(left.version, force=True).current == left.version
    app.client.activate(before)
    answer = app.client.recommend("past-1")
    assert answer.request_id.startswith(f"{answer.model_version}.")


@pytest.mark.parametrize("path", ["/v1/models/v000001/activate", "/v1/models/rollback"])
def test_the_model_is_not_changed_without_the_token(app, path):
    answer = app.http.post(path, json={}, headers={"Authorization": "Bearer wrong"})
    assert answer.status_code == 401


def meets_its_users_at_one_replica(app):
    """Queries of a user find the keys and values that one Gateway keeps, and events those of one Recommender."""
    users = [f"met-{i}" for i in range(16)]

    def states(kind, field):
        return [replica["states"][field] for replica in getattr(app.client.status(), kind)]

    def query():
        return [app.client.recommend(user) for _ in range(5) for user in users]

    def act():
        acted = {app.publish(user, "item-1").event_id for user in users}
        made = lambda: app.received(lambda r: r.sequence.last_event_id in acted)  # noqa: E731
        eventually(lambda: {answer.user_id for answer in made()} == set(users))
        return made()

    def misses(kind, work):
        before, version = sum(states(kind, "misses")), app.client.recommend(users[0]).model_version
        # A swap in between drops what was kept.
        return {answer.model_version for answer in work()} == {version} and (sum(states(kind, "misses")) - before,)

    act()
    for kind, work in (("gateways", query), ("recommenders", act)):
        eventually(lambda kind=kind, work=work: misses(kind, work) == (0,))
        assert min(states(kind, "hits")) > 0, "each has users of its own"


def test_replicas_are_added_while_requests_are_answered_and_nothing_is_lost(app):
    users = [f"scaled-{i}" for i in range(12)]
    published = {user: [] for user in users}
    turns = iter(range(10**9))

    def publish(_):
        turn = next(turns)
        user = users[turn % len(users)]
        event = app.event(user, f"item-{turn % ITEMS}")
        app.client.publish([event])
        published[user].append(event.event_id)

    def query(number):
        return app.client.recommend(f"past-{number}", k=10)

    changed = app.deploy_file(Gateway=2, Recommender=2, Ingestor=2)
    with Callers(publish, 1).calling() as publishing, Callers(query).calling() as querying:
        command = [sys.executable, "-c", "from serving.cli import main; main()", "up", str(changed)]
        deployed = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        status = eventually(
            lambda: (
                (s := app.client.status()) and [len(ingestor["partitions"]) for ingestor in s.ingestors] == [6, 6] and s
            ),
            60,
        )
        assert len(status.gateways) == len(status.recommenders) == 2
        shared = [set(ingestor["partitions"]) for ingestor in status.ingestors]
        assert sorted(int(partition) for partitions in shared for partition in partitions) == [*range(12)]
        served = len(querying.answers)
        eventually(lambda: publishing.failures or querying.failures or len(querying.answers) > served + 50)
    assert publishing.failures == querying.failures == []
    assert sum(map(len, published.values())) > 30
    meets_its_users_at_one_replica(app)

    def complete():
        histories = {user: app.history(user) for user in users}
        return all(found and found.total == len(published[user]) for user, found in histories.items()) and histories

    def counts():
        found = {user: app.history(user) for user in users}
        return {u: (len(published[u]), f and f.total) for u, f in found.items()}, app.client.status()

    histories = eventually(complete, 60, otherwise=counts)
    for user, found in histories.items():
        expected = published[user][-len(found.events) :]
        assert [event.event_id for event in found.events] == expected, user
    for user in users:
        last = published[user][-1]
        eventually(lambda last=last: app.received(lambda r: r.sequence.last_event_id == last))


def test_an_item_is_found_within_a_second_and_withdrawn_from_every_answer(app):
    """Without waiting for a model: categories of its own, so that nothing else can be meant."""
    item_id = "late/arrival?"
    app.publisher.publish_item(ItemUpdate(item_id=item_id, title="Late arrival", categories=("late",), created_at=1))
    everybody = ["past-1", "never seen at all"]

    def late(user, **more):
        answer = app.client.recommend(user, k=5, categories=["late"], exclude_seen=False, **more)
        return {item.item_id: item.title for item in answer.items}

    def similar(found):
        try:
            return len(app.client.similar(found, k=7).items)
        except ClientError as error:
            return error.status

    eventually(lambda: all(late(user) == {item_id: "Late arrival"} for user in everybody))
    eventually(lambda: similar(item_id) == 7)
    assert [item.item_id for item in app.client.similar("item-1", k=5, categories=["late"]).items] == [item_id]
    context = {"item_id": item_id}
    assert len(app.client.recommend("never seen at all", k=5, context=context).items) == 5
    assert late("past-1", context=context) == {}, "what is looked at is not in the list"

    app.publisher.publish_item(ItemUpdate(item_id=item_id, title="Moved", categories=("elsewhere",)))
    eventually(lambda: not any(map(late, everybody)))
    before = app.client.status().model_version
    eventually(lambda: app.client.status().model_version > before, 60)
    assert similar(item_id) == 7, "the next version has it folded in"

    app.publisher.delete_item(item_id)
    eventually(lambda: similar(item_id) == 404)
    for answer in (app.client.recommend(user, k=100, exclude_seen=False) for user in everybody):
        assert item_id not in {item.item_id for item in answer.items}
    eventually(lambda: app.client.status().degraded == [], otherwise=app.client.status)
    status = app.client.status()
    for replica in status.gateways + status.recommenders:
        assert (replica["items"]["bad"], replica["items"]["left_out"]) == (0, 0)
    for path, status, field in (
        ("/v1/items/item-1/similar?k=0", 422, "k"),
        ("/v1/items/item-1/similar?k=1000000", 422, "k"),
        ("/v1/items/nowhere/similar", 404, "item_id"),
        (f"/v1/items/{'x' * 1_000}/similar", 422, "item_id"),
        ("/v1/items//similar", 422, "item_id"),
    ):
        refused = app.http.get(path)
        assert (refused.status_code, refused.json().get("field")) == (status, field), path
        assert refused.headers["Content-Type"] == "application/problem+json"
