"""Runs in place of the `haproxy` program: mends Ray Serve's configuration, then becomes HAProxy.

Ray Serve 2.60 opens a page of statistics and one of metrics on all interfaces, lets everybody write to the admin
socket, and sends a line about every request to the system log, user ids in its path. None of it can be switched off.
It sends each request to whichever replica has the fewest; the queries of a user had better meet the one that keeps the
user's keys and values (`pinrec.states`).

Started as `haproxy.py BINARY ARGUMENTS...` at every start and reload of HAProxy. Only the standard library, nothing of
ours, so that it costs some ten milliseconds.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Final

SECTIONS: Final = ("global", "defaults", "frontend", "backend", "listen")
NOT_NEEDED: Final = ("frontend prometheus", "listen stats")
"""Nothing of Ray reads them: it asks the admin socket."""
MAY_LISTEN: Final = ("frontend http_frontend", "frontend grpc_frontend")
"""Once each, at the host of the deploy file's `http_options`."""

BY_USER: Final = (
    "option http-buffer-request",  # without the body nobody knows whose request it is
    "balance hash req.body,json_query($.user_id)",  # in turn where there is none
    "hash-type consistent",  # a replica more or less moves few users
    "hash-balance-factor 150",  # one that has half as much again as the others passes its next to another
)

_PR_SET_PDEATHSIG: Final = 1


class UnknownConfigError(ValueError):
    """A configuration of which we cannot say that it listens where it should."""


def close(config: str) -> str:
    """The configuration, by user, with nothing listening but what the deploy file names and a socket of its owner.

    Args:
        config: an HAProxy configuration as Ray Serve writes it; one that is closed already stays as it is.

    Raises:
        UnknownConfigError: it holds what this function does not know.
    """
    kept, section, sockets, bound = [], "", 0, set()
    for number, line in enumerate(config.splitlines(), 1):
        words = line.split()
        word = words[0] if words else ""
        if word in SECTIONS:
            section = " ".join(words[:2])
        elif word and not word.startswith("#") and not line[0].isspace():
            raise UnknownConfigError(f"line {number}: {word!r} begins a section that is not known")
        if section in NOT_NEEDED or (section, word) == ("global", "log"):
            continue
        if section == "defaults" and line.strip() in BY_USER and word != "balance":
            continue  # it was here before, and comes with the line that it belongs to
        if (section, word) == ("defaults", "balance"):
            line = "\n".join(f"    {rule}" for rule in BY_USER)  # noqa: PLW2901 - the lines that are kept
        if word == "bind":
            if section not in MAY_LISTEN or section in bound:
                raise UnknownConfigError(f"line {number}: '{section}' would listen at {' '.join(words[1:])}")
            bound.add(section)
        if words[:2] == ["stats", "socket"]:
            if words[2][:1] != "/" or words[3:4] != ["mode"] or len(words) < 5:
                raise UnknownConfigError(f"line {number}: an admin socket that is not known: {line.strip()}")
            line = " ".join(["   ", *words[:4], "600", *words[5:]])  # noqa: PLW2901 - the line that is kept
            sockets += 1
        kept.append(line)
    if sockets != 1:
        raise UnknownConfigError(f"{sockets} admin sockets; one was expected")
    return "\n".join(kept) + "\n"


def main(binary: str, *arguments: str) -> None:
    """Close the configuration that the arguments name, and become HAProxy."""
    path = Path(arguments[arguments.index("-f") + 1])
    try:
        # In place: Ray knows its HAProxy by this file's name among its arguments, and writes it anew each time.
        path.write_text(close(path.read_text()))
    except UnknownConfigError as error:
        sys.exit(f"pinrec: {path}: {error}; HAProxy is not started, as it might be open to the network")
    # What starts it may be killed without a chance to stop it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
