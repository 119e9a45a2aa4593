"""How a worker is named among the members of its consumer group: ``SLOT#NONCE``, as its client id. Pure."""

from __future__ import annotations

import re

_NAMED = re.compile(r"(?P<slot>.*)#(?P<nonce>[0-9a-f]{8})", re.DOTALL)


def member_name(slot: str, nonce: int) -> str:
    """The client id of the process with this nonce."""
    return f"{slot}#{nonce:08x}"


def slot_of(member: str) -> str:
    """The slot of the process with this client id; all of it, where it is not one that a worker gave."""
    named = _NAMED.fullmatch(member)
    return named["slot"] if named else member


def nonce_of(member: str) -> int | None:
    """The nonce in a client id, if a worker gave it."""
    named = _NAMED.fullmatch(member)
    return int(named["nonce"], 16) if named else None
