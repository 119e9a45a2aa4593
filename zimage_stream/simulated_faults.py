"""Faults that the simulated engine can inject. Pure.

Not in ``engines/``, because the settings check the directives too, and the engines import the settings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """The kind of an injected fault."""

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
    """A fault, parsed from a directive.

    ``slow:3`` takes 3 seconds longer, ``oom:2`` runs out of memory in a batch of more than 2 (``oom:0``: even
    alone), ``hang`` never ends, ``raise`` fails, ``refuse`` blames the request, ``kill`` ends the process
    with SIGKILL, ``lost`` loses the device context, ``corrupt`` returns half an image, ``leak:64`` leaves
    64 MiB of device memory allocated permanently.
    """

    kind: FaultKind
    number: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Parse a directive. Raises ValueError, which states the value and what is accepted."""
        match = _DIRECTIVE.fullmatch(text)
        if match is not None and match["kind"] in set(FaultKind):
            kind = FaultKind(match["kind"])
            if (kind in _NUMBERED) == (match["number"] is not None):
                return cls(kind, float(match["number"] or 0))
        forms = ", ".join(f"{kind}:{_NUMBERED[kind]}" if kind in _NUMBERED else kind for kind in FaultKind)
        raise ValueError(f"got {text!r}, takes one of {forms}")
