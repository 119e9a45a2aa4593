"""Whether the requests topic is still the one that this session began with."""

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
    """Asks for the topic's id again and again, and never waits for the answer. Kafka thread only.

    A topic that is deleted and made again has the same name and another id. Nothing else tells a client: a
    consumer goes on at its offset, and what the new log has below it would never be served.
    """

    def __init__(self, admin: AdminClient, topic: str) -> None:
        self._admin = admin
        self._topic = topic
        self._first: str | None = None
        self._asked: Future[Any] | None = None
        self._ask_at = 0.0

    def changed(self) -> bool:
        """Whether the topic was deleted and made again since this was asked first."""
        if self._asked is not None and self._asked.done():
            answer, self._asked = self._asked, None
            try:
                found = str(answer.result().topic_id)
            except KafkaException as error:
                log.debug("the topic's id cannot be had: %s", error.args[0].str())
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
