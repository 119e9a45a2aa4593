"""Detects that the requests topic has been deleted and created again."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

log = logging.getLogger(__name__)

EVERY_S = 2.0
ANSWER_TIMEOUT_S = 5.0


class TopicIdentity:
    """Polls the topic's id, never waiting for an answer. Kafka thread only.

    A topic that is deleted and created again keeps its name but has a new id. Nothing else tells a client:
    a consumer goes on at its old offset, and the records below it in the new log would never be served.
    """

    def __init__(self, admin: AdminClient, topic: str) -> None:
        self._admin = admin
        self._topic = topic
        self._first: str | None = None
        self._asked: Future[Any] | None = None
        self._ask_at = 0.0

    def changed(self) -> bool:
        """Whether the topic has been deleted and created again since the first call."""
        if self._asked is not None and self._asked.done():
            answer, self._asked = self._asked, None
            try:
                found = str(answer.result().topic_id)
            except KafkaException as error:
                log.debug("the topic's id is unavailable: %s", error.args[0].str())
            else:
                if self._first is None:
                    self._first = found
                return found != self._first
        if self._asked is None and time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + EVERY_S
            asked = self._admin.describe_topics(
                TopicCollection([self._topic]), request_timeout=ANSWER_TIMEOUT_S
            )
            self._asked = asked[self._topic]
        return False
