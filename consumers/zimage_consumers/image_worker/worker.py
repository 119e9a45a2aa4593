"""The life of a worker process, from loading the model to the exit code."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from confluent_kafka import KafkaException

from zimage_consumers.image_worker.device.errors import EngineHungError, EngineLostError
from zimage_consumers.image_worker.device.generate import untold
from zimage_consumers.image_worker.exits import ExitCode
from zimage_consumers.image_worker.group.progress import ProgressPublisher
from zimage_consumers.image_worker.group.publish import ClientsLostError, FencedError
from zimage_consumers.image_worker.group.roster import draw_nonce
from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.message_path import MessagePath
from zimage_stream.engines.base import Engine
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.clients import create_admin
from zimage_stream.settings import Settings
from zimage_stream.stores.base import ImageStore
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics
from zimage_stream.telemetry.tracing import Tracer

log = logging.getLogger(__name__)

REJOIN_WAIT_S = 1.0
OUTAGE_WAIT_S = 1.0
FENCED_AGAIN_S = 60.0


class Worker:
    """A worker: one process, one GPU, one member of the group.

    Args:
        engine: not loaded yet; it is loaded, used and closed on a thread of its own.
        slot: this worker's stable name.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        store: ImageStore,
        codec: Codec,
        *,
        slot: str,
        health: Health,
        metrics: Metrics,
        tracer: Tracer,
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._slot = slot
        self._health = health
        self._metrics = metrics
        self._owner = draw_nonce(slot)
        self._admin = create_admin(settings.kafka)
        self._progress = (
            None if settings.worker.progress == "off" else ProgressPublisher(settings, codec, slot, metrics)
        )
        self._path = MessagePath(
            settings,
            engine,
            store,
            codec,
            slot=slot,
            tell=self._progress.tell if self._progress else untold,
            health=health,
            metrics=metrics,
            tracer=tracer,
        )
        self._stop = threading.Event()
        self._stopped_at = 0.0
        self._deadline: float | None = None

    def stop(self) -> None:
        """Finish what is running, commit and leave. Does not wait. Safe to call from a signal handler."""
        self._stopped_at = time.monotonic()
        self._stop.set()

    def stopping_for(self) -> float:
        """Seconds since :meth:`stop`; 0 before."""
        return time.monotonic() - self._stopped_at if self._stop.is_set() else 0.0

    def run(self, loaded: Callable[[], None] = lambda: None) -> ExitCode:
        """Serve until :meth:`stop`.

        Args:
            loaded: called once the engine can generate.

        Raises:
            ZImageError: the worker cannot start, since the settings or the model are wrong.
        """
        # First, since the model takes long to load and is useless where no request can be answered.
        while not (self._stop.is_set() or self._path.can_answer()):
            self._stop.wait(OUTAGE_WAIT_S)
        # Also before the model: this ends a dead predecessor's transaction.
        session = self._claim_slot()
        if session is None:
            return ExitCode.DONE
        self._path.engine.start()
        try:
            self._path.engine.wait_loaded()
            self._health.set_started()
            loaded()
            if self._progress is not None:
                self._progress.start()
            return self._serve(session)
        finally:
            if self._progress is not None:
                self._progress.stop()
            self._path.close()
            self._path.engine.stop()

    def _claim_slot(self) -> Session | None:
        """The first session, with its publisher started; ``None`` if stopped before that."""
        while not self._stop.is_set():
            session = self._open()
            try:
                session.start_publisher()
            except ClientsLostError as error:
                log.warning("the slot could not be claimed, trying again: %s", error)
                session.abandon()
                self._stop.wait(REJOIN_WAIT_S)
            else:
                return session
        return None

    def _serve(self, session: Session) -> ExitCode:
        fenced_at = float("-inf")
        while True:
            try:
                session.join()
                while not self._stop.is_set():
                    self._path.turn(session)
                    if self._path.leaked:
                        self.stop()
                self._leave(session)
                return self._code
            except EngineLostError as error:
                return self._end_without_engine(session, error)
            except EngineHungError as error:
                # The marks stay open: the requests that were running are under suspicion.
                log.error("%s; only a new process can use the device", error)
                session.abandon()
                return ExitCode.HUNG
            except (ClientsLostError, KafkaException) as error:
                log.warning("discarding both clients and joining the group again: %s", error)
                session.abandon()
                if self._stop.is_set():
                    return self._code if session.clean else ExitCode.FAILED
                if isinstance(error, FencedError):
                    # Once may be our own transaction that the broker timed out. Twice means another process
                    # in our slot, and if both went on they would fence each other forever.
                    if time.monotonic() - fenced_at < FENCED_AGAIN_S:
                        log.error("another process uses slot %s; this one ends", self._slot)
                        return ExitCode.FENCED
                    fenced_at = time.monotonic()
                self._stop.wait(REJOIN_WAIT_S)
                session = self._open()

    def _open(self) -> Session:
        return Session(
            self._settings,
            self._admin,
            self._path.window,
            self._codec,
            slot=self._slot,
            owner=self._owner,
            give_up=self._stop.is_set,
            on_revoke=self._give_back,
            health=self._health,
            metrics=self._metrics,
        )

    def _leave(self, session: Session) -> None:
        """Finish what is running within the drain time, then release everything cleanly."""
        self._deadline = time.monotonic() + self._settings.worker.drain_timeout_s
        self._path.stop_starting()
        self._path.drain(session, self._deadline)
        session.close()

    def _end_without_engine(self, session: Session, error: EngineLostError) -> ExitCode:
        self._path.drop_engine_work()
        if not error.sick:
            # The marks stay open: the requests running when the context was lost are under suspicion.
            log.error("the device context is lost; only a new process can use the device: %s", error)
            session.abandon()
            return ExitCode.CONTEXT_LOST
        log.error("the device is sick, giving its requests back: %s", error)
        self._health.hold("engine", f"the device is sick: {error}")
        try:
            self._leave(session)
        except (ClientsLostError, KafkaException) as lost:
            log.warning("the requests could not be given back, so their marks stay open: %s", lost)
            session.abandon()
        return ExitCode.SICK

    def _give_back(self, session: Session) -> None:
        deadline = self._deadline or time.monotonic() + self._settings.worker.drain_timeout_s
        self._path.give_back(session, deadline)

    @property
    def _code(self) -> ExitCode:
        return ExitCode.LEAKED if self._path.leaked else ExitCode.DONE
