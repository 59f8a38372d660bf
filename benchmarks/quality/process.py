"""Setting up a process that trains on a CPU."""

import ctypes
import os
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
_NEVER: Final = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc keep what is freed; to be called before torch allocates. Elsewhere than on glibc it does nothing.

    glibc maps large blocks anew for every temporary tensor and gives them back at once, so each is zeroed by the
    kernel page by page. With blocks out of the heap, which is never trimmed, such operations take half the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def use_all_cores() -> None:
    """One torch thread for each core this process may use, unless OMP_NUM_THREADS says otherwise."""
    import torch  # noqa: PLC0415 - it allocates, and must come after `keep_freed_memory`

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
