"""Jobs for tests, made without a broker."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any

from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.jobs import Job
from zimage_consumers.image_worker.window.ledger import Ledger
from zimage_stream.checkpoint import Checkpoint
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.kafka.record import Record

_offsets = itertools.count()
SENT = datetime(2026, 1, 1, tzinfo=UTC)


def job(partition: int = 0, suspect: bool = False, ever_started: bool = False, **request: Any) -> Job:
    """A decoded job at a fresh offset, under an assignment of its own.

    Args:
        request: fields of its request.
    """
    record = Record("requests", partition, next(_offsets), b"key", b"value", (), SENT)
    fields = {"prompt": "a red circle", **request}
    assignment = Assignment(partition, Ledger(Checkpoint(0)), informed=True)
    return Job(record, assignment, PromptRequest(**fields), suspect=suspect, ever_started=ever_started)


def leave(jobs: Iterable[Job], partitions: Collection[int]) -> None:
    """Mark the assignments of these partitions as gone."""
    for each in jobs:
        each.assignment.gone |= each.record.partition in partitions
