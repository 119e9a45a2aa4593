"""Free ports on loopback, for servers that return to the same port after a restart."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 15_000
_RANGE_OF_CLIENTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Distinct ports that nothing listens on now.

    They are below the ephemeral range. While a server is down, a client that retries its address could be
    given
    that very port as its own from the ephemeral range: it would connect to itself, and the server would never
    get its port back.
    """
    candidates = list(range(_LOWEST, _first_client_port()))
    random.shuffle(candidates)
    found: list[int] = []
    while len(found) < count:
        port = candidates.pop()
        with socket.socket() as probe:
            # As servers set it: a predecessor's connection in TIME_WAIT does not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found


def _first_client_port() -> int:
    try:
        lowest = int(_RANGE_OF_CLIENTS.read_text().split()[0])
    except OSError:
        return 32_768
    return lowest if lowest > _LOWEST + 1_000 else 32_768
