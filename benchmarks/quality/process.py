"""Setting up a process that trains on a CPU."""

import os


def use_all_cores() -> None:
    """One torch thread for each core this process may use, unless OMP_NUM_THREADS says otherwise."""
    import torch  # noqa: PLC0415 - it allocates, and must come after `keep_freed_memory`

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
