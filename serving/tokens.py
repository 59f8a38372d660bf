"""The admin token: kept in a file that only its owner may read."""

import os
import secrets
from pathlib import Path

from serving.config import AppSettings


def token_file(settings: AppSettings) -> Path:
    """Where the token is kept."""
    return settings.serving.admin_token_file or settings.state.root / "admin-token"


def read_token(settings: AppSettings) -> str | None:
    """The admin token; None if there is none, and then no admin call is allowed."""
    try:
        return token_file(settings).read_text().strip() or None
    except FileNotFoundError:
        return None


def ensure_token(settings: AppSettings) -> None:
    """Make the token if there is none. Mode 0600."""
    if read_token(settings) is None:
        file = token_file(settings)
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as output:
            output.write(secrets.token_urlsafe(24) + "\n")
