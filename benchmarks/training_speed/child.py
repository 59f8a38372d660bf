"""The end of a measured process: it reads a job, gets ready, and trains so many steps whenever it is told to.

It speaks lines of JSON: in comes the job, then one command after the other; out goes a line when it is ready, and one
after each command. Standard library only: RecBole's environment imports this module too.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from streaming.process import keep_freed_memory

Job = dict[str, Any]
Training = Callable[[int], dict[str, float]]
"""Steps -> `seconds`, `steps`, `predictions` and `events` encoded."""


def serve(prepare: Callable[[Job], tuple[dict[str, float], Mapping[str, Training]]]) -> None:
    """Get ready and train until standard input ends.

    Args:
        prepare: makes, of a job, the facts to tell about it and what can be trained, by name.
    """
    with _answers() as answers:
        facts, trainings = prepare(json.loads(sys.stdin.readline()))
        keep_freed_memory()  # not before: reading needs more than stays
        _say(answers, facts)
        for line in sys.stdin:
            command = json.loads(line)
            _say(answers, trainings[command["train"]](command["steps"]))


def _answers() -> TextIO:
    """Standard output, kept for answers: what anything else prints there goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, content: Mapping[str, float]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()
