"""Names of a consumer group's members: a worker's client id is ``SLOT#NONCE``. Pure."""

from __future__ import annotations

import re

_NAMED = re.compile(r"(?P<slot>.*)#(?P<nonce>[0-9a-f]{8})", re.DOTALL)


def member_name(slot: str, nonce: int) -> str:
    """Build the client id of the process with this slot and nonce."""
    return f"{slot}#{nonce:08x}"


def slot_of(member: str) -> str:
    """Return the slot in a client id, or the whole client id if no worker made it."""
    named = _NAMED.fullmatch(member)
    return named["slot"] if named else member


def nonce_of(member: str) -> int | None:
    """Return the nonce in a client id, or ``None`` if no worker made it."""
    named = _NAMED.fullmatch(member)
    return int(named["nonce"], 16) if named else None
