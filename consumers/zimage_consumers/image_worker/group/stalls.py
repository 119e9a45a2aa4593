"""Partitions that deliver nothing though their log has more.

A batch that the client cannot decompress or parse stops its partition: it is fetched again and again, nothing
behind it comes, and often no error either. From outside that looks like a partition without work, or like one
whose producer has a transaction open. So the leader is asked, and nobody waits for its answer: where records
that may be read lie behind what was delivered, and none has come for a minute, the batch cannot be read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from zimage_stream.telemetry.health import Health

log = logging.getLogger(__name__)

STALLED_AFTER_S = 60.0
"""A partition that delivers nothing for so long, though it could, is named."""
ANSWER_TIMEOUT_S = 5.0
EVERY_S = 0.5

_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class _Silence:
    """Attributes:
    next: offset that is to be delivered next.
    since: monotonic time from which it could have been.
    end: of what may be read, once the leader has said it.
    """

    next: int
    since: float
    end: Future[Any] | None = None
    named: bool = False


class Stalls:
    """Names the partitions that stand still, in ``/readyz`` and the log. Kafka thread only."""

    def __init__(self, admin: AdminClient, topic: str, health: Health) -> None:
        self._admin = admin
        self._topic = topic
        self._health = health
        self._silent: dict[int, _Silence] = {}
        self._watch_at = 0.0

    @property
    def count(self) -> int:
        """Partitions that stand still."""
        return sum(each.named for each in self._silent.values())

    def due(self) -> bool:
        """Whether :meth:`watch` has anything to do; it is called after a poll that found nothing."""
        return time.monotonic() >= self._watch_at

    def watch(self, held: Mapping[int, int], waiting: Collection[int]) -> None:
        """Look at what has come since.

        Args:
            held: next offset of each partition held.
            waiting: those of them that are fetched, and that have more as far as the last fetch was told.
        """
        at = time.monotonic()
        self._watch_at = at + EVERY_S
        for number, each in list(self._silent.items()):
            if held.get(number) != each.next or not (each.named or number in waiting):
                self.drop([number])
        for number in waiting:
            each = self._silent.setdefault(number, _Silence(held[number], at))
            if each.end is not None and each.end.done():
                self._hear(number, each, at)
            elif each.end is None and not each.named and at - each.since >= STALLED_AFTER_S:
                place = TopicPartition(self._topic, number)
                each.end = self._admin.list_offsets(
                    {place: _LATEST},
                    isolation_level=IsolationLevel.READ_COMMITTED,
                    request_timeout=ANSWER_TIMEOUT_S,
                )[place]

    def cannot_read(self, number: int, next_offset: int, why: str) -> None:
        """The client says itself that it cannot read what is next."""
        each = self._silent.get(number)
        if each is None or each.next != next_offset:
            self.drop([number])
            each = self._silent[number] = _Silence(next_offset, time.monotonic())
        if not each.named:
            self._name(number, each, why)

    def drop(self, numbers: Collection[int]) -> None:
        """These have moved, or are somebody else's."""
        for number in numbers:
            each = self._silent.pop(number, None)
            if each is not None and each.named:
                log.info("partition %d stands still no more", number)
                self._health.release(_key(number))

    def _hear(self, number: int, each: _Silence, at: float) -> None:
        answer, each.end = each.end, None
        assert answer is not None
        try:
            end = answer.result().offset
        except KafkaException as error:
            log.debug("the end of partition %d cannot be had: %s", number, error.args[0].str())
            end = -1
        if end > each.next:
            silent_s = at - each.since
            self._name(number, each, f"the log goes on to {end}, and nothing came for {silent_s:.0f} s")
        else:
            # A transaction is open there, or the leader is away: no fault of what is next.
            each.since = at

    def _name(self, number: int, each: _Silence, why: str) -> None:
        each.named = True
        reason = (
            f"partition {number} stands still: its log has a batch at offset {each.next} that cannot be read "
            f"({why}). To go on behind it, stop the workers and set the group's offset for this partition to "
            f"the end of that batch"
        )
        log.error(reason, extra={"partition": number, "offset": each.next})
        self._health.hold(_key(number), reason, number)


def _key(number: int) -> str:
    return f"stalled-{number}"
