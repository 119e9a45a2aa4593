"""Publishes the progress of requests: fire and forget, on a producer and a thread of its own.

Nothing waits for it and nothing fails because of it. Other threads append notices to a queue; where that
queue, or the producer's, is full, progress is dropped. Without a topic that takes it, it is given up for half
a minute, and the log says so once.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import replace
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from zimage_consumers.image_worker.window.jobs import Notice
from zimage_stream.engines.base import Encode
from zimage_stream.errors import ZImageError
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import progress_headers
from zimage_stream.events.progress import MAX_PREVIEW_BYTES, Progress
from zimage_stream.kafka.clients import progress_config
from zimage_stream.settings import Settings
from zimage_stream.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

MAX_NOTICES = 1_000
"""Maximum number of notices that wait to be published; each is of one batch at most."""
MAX_NOTICES_WITH_PREVIEWS = 32
"""Number of waiting notices from which on previews are left out. Until they are encoded they take memory, up
to 2 MiB for each image."""
LOOK_AGAIN_S = 30.0
"""How long progress is given up, in seconds, once the topic is missing or refuses it."""
QUIET_S = 600.0
"""Minimum time between two complaints in the log, in seconds, if progress was published in between."""
ANSWER_TIMEOUT_S = 5.0
GATHER_S = 0.02
"""How long notices are gathered before they are published, in seconds. The last of a batch and the first of
the next one come together, just when the engine's thread needs the interpreter most."""
POLL_S = 0.5
"""Longest time, in seconds, for which delivery reports are not looked at."""
STOP_S = 1.0
"""How long a worker's end is delayed for the last progress, in seconds."""
_REFUSED = frozenset(
    (
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.POLICY_VIOLATION,
    )
)
"""Errors after which the next record would be refused as well."""


def events_of(notice: Notice, worker: str) -> list[Progress]:
    """The events of a notice. Makes their previews, in a few milliseconds each; one that fails is left out.

    Args:
        worker: the slot.
    """
    return [
        Progress(
            request_id=request.request_id,
            tenant=request.tenant,
            batch_id=request.batch_id,
            source=source,
            stage=notice.stage,
            step=notice.step,
            steps=notice.steps,
            worker=worker,
            at=notice.at,
            preview=_preview(notice.previews.get(source)),
        )
        for source, request in notice.subjects
    ]


def _preview(encode: Encode | None) -> bytes | None:
    if encode is None:
        return None
    try:
        preview = encode()
    except Exception as error:
        # Engines are not ours alone, and may raise anything.
        log.debug("a preview is left out: %s: %s", type(error).__name__, error)
        return None
    if len(preview) > MAX_PREVIEW_BYTES:
        log.debug("a preview is left out: it has %d bytes", len(preview))
        return None
    return preview


class ProgressPublisher(threading.Thread):
    """Publishes progress. :meth:`tell` may be called from any thread, also before it is started.

    Args:
        slot: this worker's stable name.
    """

    def __init__(self, settings: Settings, codec: Codec, slot: str, metrics: Metrics) -> None:
        super().__init__(name="progress", daemon=True)
        self._settings = settings
        self._topic = settings.topics.progress
        self._codec = codec
        self._slot = slot
        events = metrics.progress_events
        self._published, self._dropped, self._failed = map(events.labels, ("published", "dropped", "failed"))
        self._notices: queue.SimpleQueue[Notice | None] = queue.SimpleQueue()
        self._producer: Producer | None = None
        self._usable = False
        """Whether the topic is there, and has refused nothing lately."""
        self._look_at = 0.0
        self._problem = ""
        self._complained_at = 0.0

    def tell(self, notice: Notice) -> None:
        """Publish this as soon as possible, or drop it if too many wait. Returns at once."""
        waiting = self._notices.qsize()
        if waiting >= MAX_NOTICES:
            self._dropped.inc(len(notice.subjects))
        elif notice.subjects:
            crowded = notice.previews and waiting >= MAX_NOTICES_WITH_PREVIEWS
            self._notices.put(replace(notice, previews={}) if crowded else notice)

    def stop(self) -> None:
        """Publish what is waiting, for a second at most, and end the thread."""
        self._notices.put(None)
        if self.is_alive():
            self.join(STOP_S)

    def run(self) -> None:
        try:
            while self._serve():
                pass
        except Exception:
            # A bug of ours. Requests are served without progress.
            log.exception("this process publishes no more progress")
        finally:
            if self._producer is not None:
                self._producer.flush(STOP_S / 2)
                self._producer.purge()

    def _serve(self) -> bool:
        """Publish the notices that come next. Returns whether there may be more."""
        try:
            notice = self._notices.get(timeout=POLL_S)
            if notice is not None:
                time.sleep(GATHER_S)
            while notice is not None:
                self._publish(notice)
                self._take_reports()
                notice = self._notices.get_nowait()
        except queue.Empty:
            self._take_reports()
            return True
        return False

    def _take_reports(self) -> None:
        """Have the client call :meth:`_delivered`; what it has not reported fills its queue."""
        if self._producer is not None:
            self._producer.poll(0)

    def _publish(self, notice: Notice) -> None:
        if not self._usable and time.monotonic() >= self._look_at:
            self._look()
        if self._producer is None or not self._usable:
            self._failed.inc(len(notice.subjects))
            return
        events = events_of(notice, self._slot)
        for number, event in enumerate(events):
            try:
                self._produce(self._producer, event)
            except BufferError:
                self._dropped.inc()
            except (KafkaException, ZImageError) as error:
                # The brokers refuse, or the registry has no id for the schema: the others would fail too.
                self._failed.inc(len(events) - number)
                self._give_up(str(error))
                return
            except Exception as error:
                # An engine may report anything as its steps.
                self._failed.inc()
                self._complain(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        """Look whether the topic can be published to."""
        try:
            if self._producer is None:
                self._producer = Producer(progress_config(self._settings.kafka))
            # To ask for the topic by its name, or to produce to it, would create it on some brokers.
            self._usable = self._topic in self._producer.list_topics(timeout=ANSWER_TIMEOUT_S).topics
        except Exception as error:
            self._give_up(str(error))
        else:
            if not self._usable:
                self._give_up("the topic does not exist")

    def _produce(self, producer: Producer, event: Progress) -> None:
        producer.produce(
            self._topic,
            key=event.request_id.encode(),
            value=self._codec.encode_progress(event, self._topic),
            headers=[(name, value) for name, value in progress_headers(event)],
            on_delivery=self._delivered,
        )

    def _delivered(self, problem: KafkaError | None, _: Any) -> None:
        if problem is None:
            self._published.inc()
            if self._problem and time.monotonic() - self._complained_at > QUIET_S:
                self._problem = ""
            return
        self._failed.inc()
        if problem.code() in _REFUSED:
            self._give_up(problem.str())
        else:
            self._complain(problem.str())

    def _give_up(self, reason: str) -> None:
        self._usable = False
        self._look_at = time.monotonic() + LOOK_AGAIN_S
        self._complain(reason)

    def _complain(self, reason: str) -> None:
        if not self._problem:
            self._problem, self._complained_at = reason, time.monotonic()
            log.warning("no progress is published to %s: %s", self._topic, reason)
