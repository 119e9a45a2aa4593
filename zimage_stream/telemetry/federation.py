"""Combined metrics and health of several workers, as a supervisor serves them on its port."""

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
"""Timeout for one worker, in seconds: a scrape of all must finish before the scraper gives up."""


@dataclass(frozen=True, slots=True)
class Member:
    """A worker process under a supervisor.

    Attributes:
        device: the worker's device, as a label.
        port: port of the worker's own health and metrics on this machine; ``None`` while it has none.
        problem: the problem with the worker that its supervisor knows of, if any.
    """

    device: str
    port: int | None
    problem: str | None = None


class Federation(Collector):
    """Queries all workers whenever it is queried itself.

    Args:
        members: returns the current workers; called from the server's threads.
    """

    def __init__(self, members: Callable[[], list[Member]]) -> None:
        self._members = members

    def alive(self) -> bool:
        """Always true: the supervisor is alive, whatever the state of its workers."""
        return True

    def ready(self) -> tuple[bool, list[str]]:
        """Whether every worker can serve, and every reason why one cannot."""
        reasons = []
        for member in self._members():
            reasons += [f"{member.device}: {reason}" for reason in _reasons(member)]
        return not reasons, reasons

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all workers with a ``device`` label, and whether each worker answered."""
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
        return [member.problem or "the worker is not running or does not answer"]
    answer: Mapping[str, list[str]] = json.loads(text)
    return list(answer["reasons"])


def _get(member: Member, path: str) -> str | None:
    """Return the worker's response body, whatever its status; ``None`` if there is no response."""
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
