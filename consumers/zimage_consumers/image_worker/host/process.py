"""One worker in this process: everything put together from the settings."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from importlib.metadata import version
from types import FrameType

from prometheus_client import CollectorRegistry, ProcessCollector

from zimage_consumers.image_worker.exits import ExitCode
from zimage_consumers.image_worker.stages.deliver import STORE_REQUESTS
from zimage_consumers.image_worker.worker import Worker
from zimage_stream.cli import interrupt
from zimage_stream.engines import Engine, create_engine
from zimage_stream.events.codec import create_codec
from zimage_stream.settings import Settings
from zimage_stream.stores import ImageStore, create_store
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.logs import configure
from zimage_stream.telemetry.metrics import HealthCollector, Metrics
from zimage_stream.telemetry.server import serve
from zimage_stream.telemetry.tracing import create_tracer

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""As malloc.h has them."""
_LARGEST_BUFFER, _KEPT_FREE = 32 << 20, 256 << 20
"""Bytes. A larger buffer than the first, the most that glibc takes, comes from the system and goes back."""
PATIENCE_S = 0.05
"""The Kafka thread waits so long for the schema registry, where most answer within less."""
LEAVE_S = 5.0
"""After the drain time, for what is finished to be committed and the group to be left."""


def run_worker(
    settings: Settings,
    slot: str,
    *,
    engine: Engine | None = None,
    store: ImageStore | None = None,
    started: Callable[[Worker, int], None] | None = None,
    loaded: Callable[[], None] = lambda: None,
) -> ExitCode:
    """Serve requests in this process until it is told to stop. Call it from the main thread.

    Args:
        slot: the stable name of this worker; no two that run at the same time share one.
        engine: makes the pictures, in place of the engine that the settings name.
        store: keeps them, in place of the store that the settings name.
        started: called with the worker and the port of its health checks before the model is loaded. Without
            it SIGTERM and SIGINT stop the worker: the first one finishes what runs, the second one ends the
            process at once.
        loaded: called once the model is loaded.

    Returns:
        what the process should exit with; a supervisor tells by it whether the device can be used again.

    Raises:
        ZImageError: the worker cannot start: the settings, the store or the model are wrong.
    """
    configure(settings.telemetry, slot=slot)
    keep_buffers()
    # What every thread does, on stderr: for whoever is called at night to a worker that stands still.
    faulthandler.register(signal.SIGUSR1)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics, health = Metrics(registry), Health()
    registry.register(HealthCollector(health))
    tracer = create_tracer(settings.telemetry.traces, slot)
    if store is None:
        store = create_store(settings.store, connections=settings.worker.upload_threads + STORE_REQUESTS)
    codec = create_codec(settings.registry, PATIENCE_S)
    try:
        if engine is None:
            engine = create_engine(settings.engine)
        metrics.build.info(
            {"version": version("zimage-stream"), "model": engine.model, "engine": settings.engine.kind}
        )
        worker = Worker(
            settings, engine, store, codec, slot=slot, health=health, metrics=metrics, tracer=tracer
        )
        with serve(health, registry, settings.telemetry.host, settings.telemetry.port) as server:
            log.info("health and metrics on port %d", server.port)
            if started is None:
                StopSignals().watch(worker)
            else:
                started(worker, server.port)
            return _run(worker, loaded, settings.worker.drain_timeout_s + LEAVE_S)
    finally:
        tracer.close()
        codec.close()
        store.close()


def keep_buffers() -> None:
    """Have the C library keep freed buffers for the next picture instead of giving them back to the system.

    Each picture passes through several of some megabytes. Anew they come page by page at their first touch,
    which takes as long as all that is done to them but deflating, longer in a virtual machine. With another C
    library than glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BUFFER)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)


def _run(worker: Worker, loaded: Callable[[], None], longest_stop_s: float) -> ExitCode:
    """Run the worker on a thread of its own.

    Signals are heard by the main thread between two steps of Python, and a call into Kafka is one step
    for as long as no broker answers: so the main thread makes none.
    """
    with ThreadPoolExecutor(1, "kafka") as pool:
        running = pool.submit(worker.run, loaded)
        while True:
            done, _ = wait([running], timeout=0.2)
            if done:
                code = running.result()
                if code == ExitCode.HUNG:
                    # A thread that hangs inside a driver can keep an interpreter from ending.
                    logging.shutdown()
                    os._exit(code)
                return code
            if worker.stopping_for() > longest_stop_s:
                log.error("the brokers do not let this worker leave; it ends without")
                os._exit(ExitCode.FAILED)


class StopSignals:
    """SIGTERM and SIGINT drain the worker; a second one ends the process at once."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._interrupted = False

    def watch(self, worker: Worker) -> None:
        """From now on."""
        self._worker = worker
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def exit_code(self, code: int) -> int:
        """The process's: a Ctrl-C that went well is told from work that was done."""
        return interrupt.EXIT_CODE if code == ExitCode.DONE and self._interrupted else code

    def _stop(self, number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, _end_at_once)
        signal.signal(signal.SIGINT, _end_at_once)
        self._interrupted = number == signal.SIGINT
        log.info("signal %s: finishing what runs", signal.Signals(number).name)
        assert self._worker is not None
        self._worker.stop()


def _end_at_once(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)
