"""Puts histories into Redis: `python -m benchmarks.usual.fill PORT FILE` in the usual stack's environment."""

import json
import sys
from pathlib import Path

from redis import Redis

_AT_A_TIME = 1_000


def main() -> None:
    """Replace all that Redis holds by the file's: JSON, user -> item ids, oldest first."""
    redis = Redis(port=int(sys.argv[1]))
    redis.flushall()
    histories = list(json.loads(Path(sys.argv[2]).read_text()).items())
    for at in range(0, len(histories), _AT_A_TIME):
        with redis.pipeline(transaction=False) as pipeline:
            for user_id, item_ids in histories[at : at + _AT_A_TIME]:
                pipeline.rpush(user_id, *item_ids)
            pipeline.execute()


if __name__ == "__main__":
    main()
