"""Functions that are compiled when their module is imported (numba).

That takes some seconds the first time; what was made is kept beside the bytecode. The interpreter's lock is not held
while a compiled function runs, so a service's other threads go on. What a module calls must lie in the same module:
what was kept is thrown away when that file changes, not when another one does, nor when the options here do.
"""

from collections.abc import Callable
from typing import Any, Final

import numba as nb

sums: Final = nb.njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
"""For a function that others call: sums may be taken in any order, so that they use the width of the processor."""
exact: Final = nb.njit(error_model="numpy")
"""For a function that others call: everything as it is written."""


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function for these types now; what is made is kept, where there is a folder to keep it in."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            made: Callable[..., Any] = nb.njit(signature, cache=True, **options)(function)
        except RuntimeError:  # neither beside the bytecode nor in the user's own folder
            made = nb.njit(signature, **options)(function)
        return made

    return make
