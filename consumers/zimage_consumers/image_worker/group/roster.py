"""Whether the process that held a partition is alive. Pure.

A process that lost its membership in an outage has not died, and the requests it ran are not suspect. The
group itself tells the two apart: a member's client id ends in its process's nonce, and a checkpoint names its
owner by the same nonce, so an owner that is in the group again is alive.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Collection
from enum import Enum, auto

from zimage_stream.kafka.members import nonce_of

GRACE_S = 6.0
"""Time, in seconds, for a process that lost its membership to return to the group. A process that rejoins is
back within 3 s of the brokers' return, most of which it spends ending its own transaction."""
_SLOT_BITS = 0xFFFF0000


class Fate(Enum):
    """Whether a process is alive, dead, or not known yet to be either."""

    ALIVE = auto()
    DEAD = auto()
    UNKNOWN = auto()


def draw_nonce(slot: str) -> int:
    """Draw a 32-bit nonce for this process, never 0: the upper half is the slot's, the lower is random."""
    return zlib.crc32(slot.encode()) & _SLOT_BITS | secrets.randbelow(0xFFFF) + 1


def fate_of(owner: int, members: Collection[str], waited_s: float) -> Fate:
    """Judge whether the process with this nonce is alive.

    Args:
        members: client ids of the group's current members.
        waited_s: seconds that its partition has waited for this judgement.
    """
    nonces = {nonce for nonce in map(nonce_of, members) if nonce is not None}
    if owner in nonces:
        return Fate.ALIVE
    # A slot has one process at a time: its successor has joined, so the owner is gone.
    if any(nonce & _SLOT_BITS == owner & _SLOT_BITS for nonce in nonces):
        return Fate.DEAD
    return Fate.UNKNOWN if waited_s < GRACE_S else Fate.DEAD
