"""Partitions that the group has given us, until they can begin.

A partition begins from its checkpoint. That cannot be read while a transaction is open that a dead
predecessor began (up to 20 s), and where the log starts and ends only its leader can say. And who held the
partition is judged first: a process that died with it in its hands casts suspicion on what it ran, one that
only lost its membership does not. Each partition waits for itself alone, and nothing waits for an answer:
what is held goes on meanwhile.
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
SAID_AFTER_S = 30.0
"""A partition that has waited for so long is named in ``/readyz``."""

_EARLIEST, _LATEST = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
_REFUSED = frozenset(
    (
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError._AUTHENTICATION,
    )
)
"""No waiting helps; new clients may be let in."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a partition begins.

    Attributes:
        checkpoint: as this process takes it over.
        leader_epoch: of the last record that was taken, by which the client sees whether the log went back.
        gone_back: why it must not be served, if its log went back.
    """

    checkpoint: Checkpoint
    leader_epoch: int = UNKNOWN_EPOCH
    gone_back: str | None = None


class TakeOver:
    """Reads the checkpoints of partitions that arrive, and judges who held them. Kafka thread only.

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
        self._found: dict[int, Beginning] = {}
        """What can begin but for the judgement on who held it."""
        self._members: Future[Any] | None = None
        self._members_at = 0.0
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._arrived)

    @property
    def numbers(self) -> Collection[int]:
        """Those that wait."""
        return self._arrived.keys()

    def add(self, numbers: Collection[int]) -> None:
        """These have arrived."""
        at = time.monotonic()
        self._arrived.update(dict.fromkeys(numbers, at))
        # What was asked before they came may be old news.
        self._committed, self._ask_at = None, at
        for number in numbers:
            self._bounds.pop(number, None)
            self._found.pop(number, None)

    def drop(self, numbers: Collection[int]) -> None:
        """These are somebody else's, or begin."""
        for number in numbers:
            if self._arrived.pop(number, None) is not None:
                self._bounds.pop(number, None)
                self._found.pop(number, None)
                self._reasons.pop(number, None)
                self._health.release(_key(number))

    def ready(self) -> Mapping[int, Beginning]:
        """Those that can begin now.

        Raises:
            ClientsLostError: the brokers refuse to say.
        """
        if not self._arrived:
            return {}
        self._hear_committed()
        self._hear_bounds()
        begin = self._judged()
        self.drop(begin.keys())
        self._ask()
        return begin

    def _ask(self) -> None:
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
        self._say_who_waits(at)

    def _hear_committed(self) -> None:
        """Go on with what the group has committed: ask where these logs begin or end."""
        if self._committed is None or not self._committed.done():
            return
        answer, self._committed = self._committed, None
        try:
            found = answer.result().topic_partitions
        except KafkaException as error:
            self._wait(error.args[0], list(self._arrived))
            return
        for place in found:
            if place.error is not None:
                self._wait(place.error, [place.partition])
            elif place.partition in self._arrived:
                bound = _EARLIEST if place.offset == OFFSET_INVALID else _LATEST
                asked = TopicPartition(self._topic, place.partition)
                answers = self._admin.list_offsets({asked: bound}, request_timeout=ANSWER_TIMEOUT_S)
                self._bounds[place.partition] = place, answers[asked]

    def _hear_bounds(self) -> None:
        for number, (place, bound) in list(self._bounds.items()):
            if not bound.done():
                continue
            del self._bounds[number]
            try:
                offset = bound.result().offset
            except KafkaException as error:
                self._wait(error.args[0], [number])
                continue
            if offset < 0:
                # The client fills in its own "no offset" where a leader that has just changed said none.
                continue
            known = place.offset != OFFSET_INVALID
            self._found[number] = beginning_of(place, offset) if known else Beginning(Checkpoint(offset))

    def _judged(self) -> dict[int, Beginning]:
        """Those of which is known whether their holder died."""
        strangers = {each.checkpoint.owner for each in self._found.values()} - {0, self._owner}
        members = self._hear_members() if strangers else None
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

    def _hear_members(self) -> Collection[str] | None:
        """Client ids of the group's members by an answer that came since the last one was heard; ``None``
        while it is awaited. Where nobody may ask, nobody is known to live."""
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
            log.debug("the members of the group cannot be had: %s", error.args[0].str())
            return ()

    def _wait(self, problem: KafkaError, numbers: Collection[int]) -> None:
        if problem.code() in _REFUSED or problem.fatal():
            raise ClientsLostError(f"checkpoints of {sorted(numbers)} cannot be read: {problem.str()}")
        news = [number for number in numbers if number in self._arrived and number not in self._reasons]
        if news:
            log.warning(
                "partitions %s wait: their checkpoints cannot be read yet: %s", sorted(news), problem.str()
            )
        self._reasons.update(dict.fromkeys(news, problem.str()))

    def _say_who_waits(self, at: float) -> None:
        for number, since in self._arrived.items():
            if at - since >= SAID_AFTER_S and number in self._reasons:
                waited = f"partition {number} is not served, and has waited for {at - since:.0f} s"
                self._health.hold(_key(number), f"{waited}: {self._reasons[number]}", number)


def beginning_of(place: TopicPartition, end: int) -> Beginning:
    """How a partition begins from a commit, by what its log is now. Pure, but for a warning.

    Args:
        end: of the log.
    """
    metadata = place.metadata or ""
    epoch = UNKNOWN_EPOCH if place.leader_epoch is None else place.leader_epoch
    if metadata.startswith(GONE_BACK):
        return Beginning(Checkpoint(place.offset), epoch, metadata.removeprefix(GONE_BACK))
    checkpoint = _read(place)
    known = checkpoint.base + checkpoint.resolved.bit_length()
    gone_back = f"its log went back: it ends at {end}, and was taken up to {known}" if end < known else None
    return Beginning(checkpoint, epoch, gone_back)


def _read(place: TopicPartition) -> Checkpoint:
    """The checkpoint in a commit; of the offset alone where its metadata is not ours or does not fit it."""
    if not place.metadata:
        return Checkpoint(place.offset)
    try:
        return Checkpoint.decode(place.metadata, place.offset)
    except ValueError as error:
        log.warning(
            "the checkpoint of partition %d is not used: %s", place.partition, error,
            extra={"partition": place.partition, "offset": place.offset},
        )  # fmt: skip
        return Checkpoint(place.offset)


def _key(number: int) -> str:
    return f"take-over-{number}"
