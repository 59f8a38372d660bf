"""What a process should be told of memory."""

import ctypes
import gc
from typing import Final

_YOUNG = 50_000
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_MMAP_MAX: Final = -4
_LARGEST_THRESHOLD: Final = 32 << 20
"""More glibc does not take."""
_NEVER: Final = 2**31 - 1


def keep_freed_memory(most: int | None = None) -> None:
    """Let glibc keep what is freed, for the next temporary of the same size. Elsewhere than on glibc it does nothing.

    glibc maps large blocks anew for every temporary tensor and gives them back at once, so each is zeroed by the
    kernel page by page. With blocks out of the heap such operations take half the time.

    Args:
        most: bytes kept, and blocks of more than 32 MiB are mapped as ever, for a process that runs for long; None:
            everything is kept.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    if most is None:
        mallopt(_M_MMAP_MAX, 0)
    else:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _NEVER if most is None else most)


def tune_garbage_collection() -> None:
    """Keep the collector from walking what stays, and from looking after every few hundred objects: for a service.

    What is imported by now stays for good, and what a poll or a batch makes dies with it, hardly any of it in a cycle.
    Collections cost a quarter of the ingestor's time otherwise, and stop a replica every thousand queries.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)
