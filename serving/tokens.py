"""The admin token: from the settings, or from a file only its owner may read."""

import os
import secrets
from pathlib import Path

from serving.config import AppSettings


def token_file(settings: AppSettings) -> Path:
    """Where the token is kept when the settings name none."""
    return settings.state.root / "admin-token"


def read_token(settings: AppSettings) -> str | None:
    """The admin token; None if there is none, and then no admin call is allowed."""
    if settings.serving.admin_token is not None:
        return settings.serving.admin_token.get_secret_value()
    try:
        return token_file(settings).read_text().strip() or None
    except FileNotFoundError:
        return None


def ensure_token(settings: AppSettings) -> None:
    """Make a token file if neither settings nor folder have one. Mode 0600."""
    if read_token(settings) is None:
        settings.state.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(token_file(settings), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
