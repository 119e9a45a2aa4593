"""Partitions that the group has assigned to this worker, until they can start.

A partition starts from its checkpoint. The checkpoint cannot be read while a dead predecessor's transaction
is open (up to 20 s), and only the partition's leader knows where the log starts and ends. The previous owner
is judged first: if it died, the requests it ran become suspect; if it only lost its membership, they do not.
Each partition waits on its own, and no call blocks: partitions already held are served meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import (
    OFFSET_INVALID,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from zimage_consumers.image_worker.group.publish import ClientsLostError
from zimage_consumers.image_worker.group.roster import Fate, fate_of
from zimage_consumers.image_worker.window.assignment import UNKNOWN_EPOCH
from zimage_consumers.image_worker.window.ledger import take_over
from zimage_stream.checkpoint import GONE_BACK, Checkpoint
from zimage_stream.telemetry.health import Health

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 5.0
ASK_AGAIN_S = 0.2
REPORT_AFTER_S = 30.0
"""Wait, in seconds, after which a partition is named in ``/readyz``."""

_EARLIEST, _LATEST = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
_REFUSED = frozenset(
    (
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError._AUTHENTICATION,
    )
)
"""Errors that waiting does not cure; new clients may be admitted."""


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """Where and how a partition starts.

    Attributes:
        checkpoint: the checkpoint as this process takes it over.
        leader_epoch: epoch of the last record delivered; tells the client whether the log went back.
        gone_back: why the partition must not be served, if its log went back.
    """

    checkpoint: Checkpoint
    leader_epoch: int = UNKNOWN_EPOCH
    gone_back: str | None = None


class ArrivingPartitions:
    """Reads the checkpoints of newly assigned partitions and judges their previous owners. Kafka thread only.

    Args:
        owner: nonce of this process, as checkpoints name it.
    """

    def __init__(self, admin: AdminClient, group_id: str, topic: str, owner: int, health: Health) -> None:
        self._admin = admin
        self._group_id = group_id
        self._topic = topic
        self._owner = owner
        self._health = health
        self._arrived: dict[int, float] = {}
        self._ask_at = 0.0
        self._committed: Future[Any] | None = None
        self._bounds: dict[int, tuple[TopicPartition, Future[Any]]] = {}
        self._found: dict[int, StartingPoint] = {}
        """Starting points of partitions that wait only for the judgement on their previous owner."""
        self._members: Future[Any] | None = None
        self._members_at = 0.0
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._arrived)

    @property
    def numbers(self) -> Collection[int]:
        """The partitions that are waiting."""
        return self._arrived.keys()

    def add(self, numbers: Collection[int]) -> None:
        """Add newly assigned partitions."""
        at = time.monotonic()
        self._arrived.update(dict.fromkeys(numbers, at))
        # Answers to questions asked before the assignment may be outdated.
        self._committed, self._ask_at = None, at
        for number in numbers:
            self._bounds.pop(number, None)
            self._found.pop(number, None)

    def drop(self, numbers: Collection[int]) -> None:
        """Stop waiting for these partitions: they have started, or belong to another member."""
        for number in numbers:
            if self._arrived.pop(number, None) is not None:
                self._bounds.pop(number, None)
                self._found.pop(number, None)
                self._reasons.pop(number, None)
                self._health.release(_key(number))

    def ready(self) -> Mapping[int, StartingPoint]:
        """Return the partitions that can start now.

        Raises:
            ClientsLostError: the brokers refuse to return checkpoints.
        """
        if not self._arrived:
            return {}
        self._collect_committed()
        self._collect_bounds()
        begin = self._judged()
        self.drop(begin.keys())
        self._request_committed()
        return begin

    def _request_committed(self) -> None:
        at = time.monotonic()
        asked = [number for number in self._arrived if number not in self._bounds | self._found]
        if not asked or self._committed is not None or at < self._ask_at:
            return
        self._ask_at = at + ASK_AGAIN_S
        places = [TopicPartition(self._topic, number) for number in asked]
        answers = self._admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(self._group_id, places)],
            require_stable=True,
            request_timeout=ANSWER_TIMEOUT_S,
        )
        self._committed = answers[self._group_id]
        self._report_waiting(at)

    def _collect_committed(self) -> None:
        """Process the committed offsets: query where each of these logs begins or ends."""
        if self._committed is None or not self._committed.done():
            return
        answer, self._committed = self._committed, None
        try:
            found = answer.result().topic_partitions
        except KafkaException as error:
            self._postpone(error.args[0], list(self._arrived))
            return
        for place in found:
            if place.error is not None:
                self._postpone(place.error, [place.partition])
            elif place.partition in self._arrived:
                bound = _EARLIEST if place.offset == OFFSET_INVALID else _LATEST
                asked = TopicPartition(self._topic, place.partition)
                answers = self._admin.list_offsets({asked: bound}, request_timeout=ANSWER_TIMEOUT_S)
                self._bounds[place.partition] = place, answers[asked]

    def _collect_bounds(self) -> None:
        for number, (place, bound) in list(self._bounds.items()):
            if not bound.done():
                continue
            del self._bounds[number]
            try:
                offset = bound.result().offset
            except KafkaException as error:
                self._postpone(error.args[0], [number])
                continue
            if offset < 0:
                # The client reports its own "no offset" where a newly elected leader gave none.
                continue
            known = place.offset != OFFSET_INVALID
            self._found[number] = (
                starting_point_of(place, offset) if known else StartingPoint(Checkpoint(offset))
            )

    def _judged(self) -> dict[int, StartingPoint]:
        """The partitions of which it is known whether their previous owner died."""
        strangers = {each.checkpoint.owner for each in self._found.values()} - {0, self._owner}
        members = self._collect_members() if strangers else None
        begin, at = {}, time.monotonic()
        for number, each in self._found.items():
            fate = Fate.ALIVE
            if each.checkpoint.owner in strangers:
                fate = Fate.UNKNOWN
                if members is not None:
                    fate = fate_of(each.checkpoint.owner, members, at - self._arrived[number])
            if fate is not Fate.UNKNOWN:
                checkpoint = take_over(each.checkpoint, self._owner, died=fate is Fate.DEAD)
                begin[number] = replace(each, checkpoint=checkpoint)
        return begin

    def _collect_members(self) -> Collection[str] | None:
        """Client ids of the group's members, from an answer newer than the last one used; ``None`` while it
        is pending. Where the group may not be described, no process counts as alive."""
        if self._members is None:
            if time.monotonic() < self._members_at:
                return None
            self._members_at = time.monotonic() + ASK_AGAIN_S
            asked = self._admin.describe_consumer_groups([self._group_id], request_timeout=ANSWER_TIMEOUT_S)
            self._members = asked[self._group_id]
        if not self._members.done():
            return None
        answer, self._members = self._members, None
        try:
            return [member.client_id for member in answer.result().members]
        except KafkaException as error:
            log.debug("the members of the group are unavailable: %s", error.args[0].str())
            return ()

    def _postpone(self, problem: KafkaError, numbers: Collection[int]) -> None:
        if problem.code() in _REFUSED or problem.fatal():
            raise ClientsLostError(f"checkpoints of {sorted(numbers)} cannot be read: {problem.str()}")
        news = [number for number in numbers if number in self._arrived and number not in self._reasons]
        if news:
            log.warning(
                "partitions %s wait: their checkpoints cannot be read yet: %s", sorted(news), problem.str()
            )
        self._reasons.update(dict.fromkeys(news, problem.str()))

    def _report_waiting(self, at: float) -> None:
        for number, since in self._arrived.items():
            if at - since >= REPORT_AFTER_S and number in self._reasons:
                waited = f"partition {number} is not served, and has waited for {at - since:.0f} s"
                self._health.hold(_key(number), f"{waited}: {self._reasons[number]}", number)


def starting_point_of(place: TopicPartition, end: int) -> StartingPoint:
    """Derive a partition's starting point from its commit and the end of its log. Pure, but for a warning.

    Args:
        end: end offset of the log.
    """
    metadata = place.metadata or ""
    epoch = UNKNOWN_EPOCH if place.leader_epoch is None else place.leader_epoch
    if metadata.startswith(GONE_BACK):
        return StartingPoint(Checkpoint(place.offset), epoch, metadata.removeprefix(GONE_BACK))
    checkpoint = _read(place)
    known = checkpoint.base + checkpoint.resolved.bit_length()
    gone_back = (
        f"its log went back: it ends at {end}, but was delivered up to {known}" if end < known else None
    )
    return StartingPoint(checkpoint, epoch, gone_back)


def _read(place: TopicPartition) -> Checkpoint:
    """The checkpoint in a commit; without usable metadata, a checkpoint of the offset alone."""
    if not place.metadata:
        return Checkpoint(place.offset)
    try:
        return Checkpoint.decode(place.metadata, place.offset)
    except ValueError as error:
        log.warning(
            "ignoring the checkpoint of partition %d: %s", place.partition, error,
            extra={"partition": place.partition, "offset": place.offset},
        )  # fmt: skip
        return Checkpoint(place.offset)


def _key(number: int) -> str:
    return f"take-over-{number}"
