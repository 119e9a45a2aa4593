"""Whether the process that held a partition lives. Pure.

A process that lost its membership in an outage has not died: what it ran is under no suspicion. The group
itself tells the two apart: a member's client id ends in its process's nonce, and a checkpoint names its owner
by the same nonce, so an owner that is in the group again lives.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Collection
from enum import Enum, auto

from zimage_stream.kafka.members import nonce_of

GRACE_S = 6.0
"""For a process that lost its membership to be back in the group: one that rejoins is back within 3 s of the
brokers' return, most of which is spent on ending its own transaction."""
_SLOT_BITS = 0xFFFF0000


class Fate(Enum):
    """What became of a process."""

    ALIVE = auto()
    DEAD = auto()
    UNKNOWN = auto()


def draw_nonce(slot: str) -> int:
    """A number of 32 bits for this process, never 0: the upper half says the slot, the lower is random."""
    return zlib.crc32(slot.encode()) & _SLOT_BITS | secrets.randbelow(0xFFFF) + 1


def fate_of(owner: int, members: Collection[str], waited_s: float) -> Fate:
    """What became of the process with this nonce.

    Args:
        members: client ids of those that are in the group.
        waited_s: seconds that its partition has waited for an answer.
    """
    nonces = {nonce for nonce in map(nonce_of, members) if nonce is not None}
    if owner in nonces:
        return Fate.ALIVE
    # A slot has one process at a time: its next one is there, so it is gone.
    if any(nonce & _SLOT_BITS == owner & _SLOT_BITS for nonce in nonces):
        return Fate.DEAD
    return Fate.UNKNOWN if waited_s < GRACE_S else Fate.DEAD
