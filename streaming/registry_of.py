"""The registry that settings name."""

from pinrec.registry import Registry
from streaming.config import StateSettings


def registry_of(state: StateSettings) -> Registry:
    """The one way from a deploy file to its models.

    Raises:
        RegistryError: nothing here can reach the address.
    """
    return Registry(state.registry, state.copies, state.registry_copies)
