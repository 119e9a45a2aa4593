"""Partitions that deliver nothing although their log has more.

A batch that the client cannot decompress or parse stalls its partition: it is fetched over and over, nothing
behind it is delivered, and often no error is reported. From outside this looks like a partition without work,
or like one whose producer has an open transaction. So the leader is queried, without blocking: if there are
readable records behind the last one delivered, and none has arrived for a minute, the batch is unreadable.
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
"""Silence, in seconds, after which a partition with more to deliver is reported as stalled."""
ANSWER_TIMEOUT_S = 5.0
EVERY_S = 0.5

_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class _Silence:
    """How long a partition has delivered nothing.

    Attributes:
        next: offset to be delivered next.
        since: monotonic time from which it could have been delivered.
        end: end of the readable log, once the leader has answered.
        reported: the partition has been reported as stalled.
    """

    next: int
    since: float
    end: Future[Any] | None = None
    reported: bool = False


class Stalls:
    """Reports stalled partitions in ``/readyz`` and the log. Kafka thread only."""

    def __init__(self, admin: AdminClient, topic: str, health: Health) -> None:
        self._admin = admin
        self._topic = topic
        self._health = health
        self._silent: dict[int, _Silence] = {}
        self._watch_at = 0.0

    @property
    def count(self) -> int:
        """Number of stalled partitions."""
        return sum(each.reported for each in self._silent.values())

    def due(self) -> bool:
        """Whether it is time to call :meth:`watch`, after a poll that returned nothing."""
        return time.monotonic() >= self._watch_at

    def watch(self, held: Mapping[int, int], waiting: Collection[int]) -> None:
        """Check which partitions have delivered nothing since the last call.

        Args:
            held: next offset of each partition held.
            waiting: partitions that are being fetched and, as of the last fetch, have more to deliver.
        """
        at = time.monotonic()
        self._watch_at = at + EVERY_S
        for number, each in list(self._silent.items()):
            if held.get(number) != each.next or not (each.reported or number in waiting):
                self.drop([number])
        for number in waiting:
            each = self._silent.setdefault(number, _Silence(held[number], at))
            if each.end is not None and each.end.done():
                self._process_answer(number, each, at)
            elif each.end is None and not each.reported and at - each.since >= STALLED_AFTER_S:
                place = TopicPartition(self._topic, number)
                each.end = self._admin.list_offsets(
                    {place: _LATEST},
                    isolation_level=IsolationLevel.READ_COMMITTED,
                    request_timeout=ANSWER_TIMEOUT_S,
                )[place]

    def report_unreadable(self, number: int, next_offset: int, why: str) -> None:
        """Report a partition whose next batch the client itself calls unreadable."""
        each = self._silent.get(number)
        if each is None or each.next != next_offset:
            self.drop([number])
            each = self._silent[number] = _Silence(next_offset, time.monotonic())
        if not each.reported:
            self._report(number, each, why)

    def drop(self, numbers: Collection[int]) -> None:
        """Forget partitions that deliver again, or that belong to another member."""
        for number in numbers:
            each = self._silent.pop(number, None)
            if each is not None and each.reported:
                log.info("partition %d is not stalled any more", number)
                self._health.release(_key(number))

    def _process_answer(self, number: int, each: _Silence, at: float) -> None:
        answer, each.end = each.end, None
        assert answer is not None
        try:
            end = answer.result().offset
        except KafkaException as error:
            log.debug("the end of partition %d is unavailable: %s", number, error.args[0].str())
            end = -1
        if end > each.next:
            silent_s = at - each.since
            self._report(number, each, f"the log goes on to {end}, but nothing arrived for {silent_s:.0f} s")
        else:
            # A transaction is open there, or the leader is away: the next batch is not at fault.
            each.since = at

    def _report(self, number: int, each: _Silence, why: str) -> None:
        each.reported = True
        reason = (
            f"partition {number} is stalled: its log has a batch at offset {each.next} that cannot be read "
            f"({why}). To continue behind it, stop the workers and set the group's offset for this partition "
            f"to the end of that batch"
        )
        log.error(reason, extra={"partition": number, "offset": each.next})
        self._health.hold(_key(number), reason, number)


def _key(number: int) -> str:
    return f"stalled-{number}"
