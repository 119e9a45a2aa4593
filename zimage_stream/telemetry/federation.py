"""Metrics and health of several workers as one: what a supervisor shows on its port."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

TIMEOUT_S = 2.0
"""For one worker: a scrape of all must end before the scraper gives up."""


@dataclass(frozen=True, slots=True)
class Member:
    """A worker.

    Attributes:
        device: its label.
        port: of its own health and metrics on this machine, ``None`` while it has none.
        trouble: what its supervisor knows against it.
    """

    device: str
    port: int | None
    trouble: str | None = None


class Federation(Collector):
    """Asks the members when it is asked.

    Args:
        members: who there is now; called from the threads of the server.
    """

    def __init__(self, members: Callable[[], list[Member]]) -> None:
        self._members = members

    def alive(self) -> bool:
        """The supervisor is; what a worker lacks is its own affair."""
        return True

    def ready(self) -> tuple[bool, list[str]]:
        """Whether every worker can serve, and every reason why one cannot."""
        reasons = []
        for member in self._members():
            reasons += [f"{member.device}: {reason}" for reason in _reasons(member)]
        return not reasons, reasons

    def collect(self) -> Iterator[Metric]:
        """Every worker's metrics with a ``device`` label, and whether it answered."""
        families: dict[str, Metric] = {}
        up = Metric("zimage_worker_up", "1 if the worker of this device answers.", "gauge")
        for member in self._members():
            text = _get(member, "/metrics")
            label = {"device": member.device}
            up.add_sample("zimage_worker_up", label, float(text is not None))
            for family in text_string_to_metric_families(text or ""):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    merged.samples.append(sample._replace(labels={**sample.labels, **label}))
        yield up
        yield from families.values()


def _reasons(member: Member) -> list[str]:
    text = _get(member, "/readyz")
    if text is None:
        return [member.trouble or "the worker does not run, or does not answer"]
    answer: Mapping[str, list[str]] = json.loads(text)
    return list(answer["reasons"])


def _get(member: Member, path: str) -> str | None:
    """What the worker answers, whatever its status; ``None`` where it does not."""
    if member.port is None:
        return None
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{member.port}{path}", timeout=TIMEOUT_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.read().decode()
    except OSError:
        return None
