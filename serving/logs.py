"""What our modules log in a replica goes where Serve logs of that replica: a file in Ray's session folder."""

import logging
from typing import Final

_OURS: Final = ("pinrec", "serving", "streaming")
_SERVE: Final = "ray.serve"


class _ToServe(logging.Handler):
    """Hands records on, where Serve's level (`logging_config` of the deploy file) lets them through."""

    def emit(self, record: logging.LogRecord) -> None:
        serve = logging.getLogger(_SERVE)
        if serve.isEnabledFor(record.levelno):
            serve.handle(record)


def log_with_serve() -> None:
    """Called by each deployment as it starts.

    Serve takes a replica's stderr, where Python's warnings would go without this, for information, and a deploy file
    that asks for warnings only would lose them all.
    """
    for name in _OURS:
        ours = logging.getLogger(name)
        if not any(isinstance(handler, _ToServe) for handler in ours.handlers):
            ours.addHandler(_ToServe())
            ours.setLevel(logging.DEBUG)
            ours.propagate = False
