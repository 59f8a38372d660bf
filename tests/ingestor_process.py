"""An ingestor in a process of its own, for tests that kill it: python -m tests.ingestor_process JSON."""

import json
import logging
import signal
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pinrec.config import Vocabulary
from streaming.archive import Archive
from streaming.config import IngestSettings, KafkaSettings
from streaming.ingest import Ingestor
from streaming.schema import EventCodec
from streaming.stores.lmdb import LmdbSequenceStore


class AtOnce:
    """Generates nothing, successfully."""

    def submit(self, partition: int, user_ids: list[str]) -> "Future[None]":
        done: Future[None] = Future()
        done.set_result(None)
        return done


def main(arguments: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    root = Path(arguments["root"])
    store = LmdbSequenceStore(root / "sequences", arguments["limit"], arguments["stride"], map_gib=0.5)
    ingestor = Ingestor(
        KafkaSettings.model_validate(arguments["kafka"]),
        IngestSettings.model_validate(arguments["ingest"]),
        EventCodec(Vocabulary.model_validate(arguments["vocabulary"])),
        store,
        Archive(root / "archive"),
        AtOnce(),
        member=arguments["member"],
    )
    signal.signal(signal.SIGTERM, lambda *_: ingestor.stop())
    report = root / f"{arguments['member']}.json"

    def tell() -> None:
        while True:
            status = ingestor.status()
            aside = report.with_suffix(".aside")
            aside.write_text(json.dumps({"partitions": sorted(status.partitions), "connected": status.connected}))
            aside.replace(report)
            time.sleep(0.05)

    threading.Thread(target=tell, daemon=True).start()
    ingestor.run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
