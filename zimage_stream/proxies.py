"""Proxies that the environment names (``HTTP_PROXY`` and its like), as this project takes them.

The schema registry, the hub of models and the collector of traces are asked through them. Kafka and the
store never are.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from zimage_stream.masking import masked

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")


def leave_out_this_machine(environment: MutableMapping[str, str]) -> None:
    """Name this machine in ``NO_PROXY``, if there is a proxy: none of it leads back here."""
    given = {name.lower(): value for name, value in environment.items()}
    left_out = given.get("no_proxy", "")
    if left_out.strip() == "*" or not any(given.get(name) for name in _VARIABLES):
        return
    hosts = [host.strip() for host in left_out.split(",") if host.strip()]
    hosts += [host for host in _THIS_MACHINE if host not in hosts]
    environment["NO_PROXY"] = environment["no_proxy"] = ",".join(hosts)


def through_proxy(url: str) -> str:
    """What an error says of the proxy that a URL is asked through; empty where there is none."""
    parts = urlsplit(url.split(",")[0].strip())
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or not parts.hostname or proxy_bypass(parts.hostname):
        return ""
    name = next((name for name in os.environ if name.lower() == f"{parts.scheme}_proxy"), "ALL_PROXY")
    return f" (through the proxy {masked(proxy)} of {name}; add {parts.hostname} to NO_PROXY to go without)"
