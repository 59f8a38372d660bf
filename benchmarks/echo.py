"""P1's baseline: the least that a consumer which answers each event can do, on the same broker."""

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import Final

from kafka import KafkaProducer

from benchmarks.event_load import listener
from benchmarks.result import BenchmarkError
from streaming.config import KafkaSettings
from streaming.topics import client_options

_START_S: Final = 30.0


@contextmanager
def echo(kafka: KafkaSettings) -> Iterator[None]:
    """While it lasts, a process writes every event to the recommendations topic, as it came.

    Raises:
        BenchmarkError: it did not start, or died.
    """
    context = get_context("spawn")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=_serve, args=(kafka, ready, stop), daemon=True)
    process.start()
    try:
        if not ready.wait(_START_S):
            raise BenchmarkError(f"the echo did not start within {_START_S:g} s")
        yield
        if not process.is_alive():
            raise BenchmarkError("the echo died")
    finally:
        stop.set()
        process.join(10)
        if process.is_alive():
            process.kill()


def _serve(kafka: KafkaSettings, ready: Event, stop: Event) -> None:
    consumer = listener(kafka, kafka.events)
    producer = KafkaProducer(
        **client_options(kafka, "pinrec-bench"),
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        metrics_enabled=False,
    )
    ready.set()
    try:
        while not stop.is_set():
            for records in consumer.poll(timeout_ms=50).values():
                for record in records:
                    producer.send(kafka.recommendations, key=record.key, value=record.value)
    finally:
        producer.close(timeout=5)
        consumer.close()
