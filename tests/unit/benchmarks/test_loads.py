import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from benchmarks.event_load import Ledger
from benchmarks.http_load import HttpLoad, run
from benchmarks.processes import CpuByPart, part_of
from benchmarks.result import BenchmarkError


class TestLedger:
    def test_a_list_answers_the_event_it_ends_in(self):
        ledger = Ledger()
        ledger.publish("ann", "a1", 1.0)
        ledger.publish("bob", "b1", 2.0)
        assert ledger.answer("ann", "a1", 1.5)
        assert ledger.latency == {"a1": 0.5}
        assert ledger.unanswered == 1

    def test_a_later_list_answers_the_events_it_overtook(self):
        ledger = Ledger()
        for i in range(3):
            ledger.publish("ann", f"a{i}", float(i))
        assert ledger.answer("ann", "a1", 5.0)
        assert ledger.latency == {"a0": 5.0, "a1": 4.0}
        assert ledger.superseded == {"a0"}
        assert ledger.unanswered == 1

    def test_a_second_list_of_the_same_state_and_lists_of_the_past_count_for_nothing(self):
        ledger = Ledger()
        ledger.publish("ann", "a1", 1.0)
        ledger.answer("ann", "a1", 2.0)
        assert not ledger.answer("ann", "a1", 9.0)
        assert not ledger.answer("eve", "e1", 9.0)
        assert ledger.latency == {"a1": 1.0}


def test_cpu_time_goes_to_the_part_a_process_plays():
    assert part_of("ray::ServeReplica:pinrec:Ingestor") == "ingestor"
    assert part_of("ray::ServeReplica:pinrec:Recommender.handle_request") == "recommender"
    assert part_of("/opt/java -Xmx512m -cp jars/* kafka.Kafka server.properties") == "broker"
    assert part_of("/usr/bin/raylet --node-ip-address=127.0.0.1") == "rest_of_ray"


def test_cpu_time_of_children_is_counted_while_it_is_entered():
    cpu = CpuByPart()
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with cpu:
            deadline = time.monotonic() + 30
            process = psutil.Process(child.pid)
            before = process.cpu_times().user
            while process.cpu_times().user < before + 0.3 and time.monotonic() < deadline:
                time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    assert cpu.seconds["rest_of_ray"] >= 0.29
    assert cpu.details("event", 2)["cpu_ms_per_event_rest_of_ray"] >= 145


@pytest.fixture
def server():
    """Answers what it is asked for: the size of the body, and the status."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = b"x" * asked["size"]
            self.send_response(asked["status"])
            if asked.get("chunked"):
                self.send_header("Transfer-Encoding", "chunked")
                body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_):
            """When the measure is over its connections are gone."""

    with Server(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running.server_address
        running.shutdown()
        thread.join()


def load(server, **asked):
    body = json.dumps({"status": 200, **asked}).encode()
    return HttpLoad(*server, "/", [body], connections=3, seconds=0.3, warm_up_s=0.1)


def test_answers_in_many_parts_are_read_to_their_end(server):
    answered = run(load(server, size=300_000))
    assert len(answered.last_body) == 300_000
    assert answered.latencies
    assert answered.rate == len(answered.latencies) / 0.3


def test_chunked_answers_are_read_to_their_end(server):
    assert b"x" * 1_000 in run(load(server, size=1_000, chunked=True)).last_body


def test_a_request_that_fails_ends_the_measure(server):
    with pytest.raises(BenchmarkError, match="503"):
        run(load(server, size=10, status=503))
