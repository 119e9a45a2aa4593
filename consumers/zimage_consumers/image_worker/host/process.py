"""Runs one worker in this process, assembled from the settings."""

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
"""Parameters of mallopt, as in malloc.h."""
_LARGEST_BUFFER, _KEPT_FREE = 32 << 20, 256 << 20
"""Thresholds in bytes. Buffers above the first, the most glibc allows, go back to the system when freed."""
REGISTRY_PATIENCE_S = 0.05
"""Time, in seconds, that the Kafka thread waits for the schema registry; most answers take less."""
LEAVE_S = 5.0
"""Time, in seconds, after the drain time to commit finished work and leave the group."""


def run_worker(
    settings: Settings,
    slot: str,
    *,
    engine: Engine | None = None,
    store: ImageStore | None = None,
    started: Callable[[Worker, int], None] | None = None,
    loaded: Callable[[], None] = lambda: None,
) -> ExitCode:
    """Serve requests in this process until told to stop. Call it from the main thread.

    Args:
        slot: the stable name of this worker; no two running workers share one.
        engine: generates the images, in place of the engine that the settings name.
        store: keeps them, in place of the store that the settings name.
        started: called with the worker and the port of its health checks before the model is loaded. Without
            it SIGTERM and SIGINT stop the worker: the first one finishes what is running, the second one ends
            the process at once.
        loaded: called once the model is loaded.

    Returns:
        the exit code of the process; it tells a supervisor whether the device can be used again.

    Raises:
        ZImageError: the worker cannot start: the settings, the store or the model are wrong.
    """
    configure(settings.telemetry, slot=slot)
    keep_buffers()
    # Dumps every thread's stack to stderr, for an operator whose worker stands still.
    faulthandler.register(signal.SIGUSR1)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics, health = Metrics(registry), Health()
    registry.register(HealthCollector(health))
    tracer = create_tracer(settings.telemetry.traces, slot)
    if store is None:
        store = create_store(settings.store, connections=settings.worker.upload_threads + STORE_REQUESTS)
    codec = create_codec(settings.registry, REGISTRY_PATIENCE_S)
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
    """Make the C library keep freed buffers for the next image instead of returning them to the system.

    Each image passes through several buffers of a few megabytes. New ones are paged in at first touch, which
    takes as long as all other work on them except deflating, and longer in a virtual machine. Has no effect
    with a C library other than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BUFFER)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)


def _run(worker: Worker, loaded: Callable[[], None], longest_stop_s: float) -> ExitCode:
    """Run the worker on a thread of its own.

    The main thread handles signals only between two steps of Python, and a call into Kafka is one step for as
    long as no broker responds. So the main thread makes no such call.
    """
    with ThreadPoolExecutor(1, "kafka") as pool:
        running = pool.submit(worker.run, loaded)
        while True:
            done, _ = wait([running], timeout=0.2)
            if done:
                code = running.result()
                if code == ExitCode.HUNG:
                    # A thread that hangs inside a driver can keep the interpreter from exiting.
                    logging.shutdown()
                    os._exit(code)
                return code
            if worker.stopping_for() > longest_stop_s:
                log.error("the brokers do not let this worker leave the group; it ends without leaving")
                os._exit(ExitCode.FAILED)


class StopSignals:
    """SIGTERM and SIGINT handlers: the first signal drains the worker, a second ends the process at once."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._interrupted = False

    def watch(self, worker: Worker) -> None:
        """Install the handlers for this worker."""
        self._worker = worker
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def exit_code(self, code: int) -> int:
        """Exit code of the process: unlike finished work, a clean stop by Ctrl-C has a code of its own."""
        return interrupt.EXIT_CODE if code == ExitCode.DONE and self._interrupted else code

    def _stop(self, number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, _end_at_once)
        signal.signal(signal.SIGINT, _end_at_once)
        self._interrupted = number == signal.SIGINT
        log.info("signal %s: finishing what is running", signal.Signals(number).name)
        assert self._worker is not None
        self._worker.stop()


def _end_at_once(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)
