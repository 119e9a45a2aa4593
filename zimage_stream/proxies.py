"""Use of the proxies in environment variables (``HTTP_PROXY`` and similar).

Requests to the schema registry, the model hub and the trace collector go through them; connections to Kafka
and the store never do.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from zimage_stream.masking import masked

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")


def exclude_this_machine(environment: MutableMapping[str, str]) -> None:
    """Add this machine to ``NO_PROXY`` if a proxy is set, since a proxy cannot reach our loopback address."""
    given = {name.lower(): value for name, value in environment.items()}
    left_out = given.get("no_proxy", "")
    if left_out.strip() == "*" or not any(given.get(name) for name in _VARIABLES):
        return
    hosts = [host.strip() for host in left_out.split(",") if host.strip()]
    hosts += [host for host in _THIS_MACHINE if host not in hosts]
    environment["NO_PROXY"] = environment["no_proxy"] = ",".join(hosts)


def proxy_note(url: str) -> str:
    """Return an addition to an error message about the proxy of a URL; empty if no proxy is used."""
    parts = urlsplit(url.split(",")[0].strip())
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or not parts.hostname or proxy_bypass(parts.hostname):
        return ""
    name = next((name for name in os.environ if name.lower() == f"{parts.scheme}_proxy"), "ALL_PROXY")
    return f" (through the proxy {masked(proxy)} in {name}; to bypass it, add {parts.hostname} to NO_PROXY)"
