"""What a simulated engine can be told to do to a request. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """What a directive does to a request."""

    SLOW = "slow"
    HANG = "hang"
    OOM = "oom"
    RAISE = "raise"
    REFUSE = "refuse"
    KILL = "kill"
    LOST = "lost"
    CORRUPT = "corrupt"
    LEAK = "leak"


_NUMBERED = {FaultKind.SLOW: "SECONDS", FaultKind.OOM: "BATCH", FaultKind.LEAK: "MEGABYTES"}
_DIRECTIVE = re.compile(r"(?P<kind>[a-z]+)(:(?P<number>[0-9]+(\.[0-9]+)?))?")


@dataclass(frozen=True, slots=True)
class Fault:
    """A directive.

    ``slow:3`` takes 3 seconds more, ``oom:2`` does not fit into a batch of more than 2 (``oom:0``: not
    even alone), ``hang`` never ends, ``raise`` fails, ``refuse`` says the request is at fault, ``kill``
    ends the process by SIGKILL, ``lost`` poisons the device context, ``corrupt`` gives half a picture,
    ``leak:64`` leaves 64 MiB of the device allocated for good.
    """

    kind: FaultKind
    number: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read a directive. Raises ValueError, which says what was got and what is taken."""
        match = _DIRECTIVE.fullmatch(text)
        if match is not None and match["kind"] in set(FaultKind):
            kind = FaultKind(match["kind"])
            if (kind in _NUMBERED) == (match["number"] is not None):
                return cls(kind, float(match["number"] or 0))
        forms = ", ".join(f"{kind}:{_NUMBERED[kind]}" if kind in _NUMBERED else kind for kind in FaultKind)
        raise ValueError(f"got {text!r}, takes one of {forms}")
