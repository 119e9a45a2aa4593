"""The engine's thread: it alone touches the device, and does nothing else."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL.Image import Image

from zimage_consumers.image_worker.device.batching import BatchLimits, cost
from zimage_consumers.image_worker.device.leaks import LeakWatch
from zimage_consumers.image_worker.device.steps import TellingEngine
from zimage_consumers.image_worker.failpoints import failpoint
from zimage_consumers.image_worker.window.jobs import (
    BatchDone,
    EngineLost,
    Failed,
    Generated,
    Generating,
    Job,
    MemoryLeaked,
    Notice,
    Outcome,
    Timings,
    notice_of,
    now,
)
from zimage_stream.engines.base import Engine, ImageSpec
from zimage_stream.errors import (
    ContextLostError,
    EngineError,
    GenerationCancelledError,
    OutOfMemoryError,
    RequestError,
)
from zimage_stream.events.progress import ProgressStage
from zimage_stream.settings import EngineSettings
from zimage_stream.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

KNOWN_GOOD = ImageSpec("a red circle on a white background", 64, 64, 8, 0.0, 1)
"""An image that every healthy engine can generate; it tells a sick device from a poisonous prompt."""

IDLE_S = 1.0
_FULL_COST = 1024 * 1024 * 8 / 1e6
_RECENT = 0.05
"""Weight of the newest batch in the moving average of seconds per image."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs of one shape, marked and cleared to run. ``probe``: generate the known-good image first."""

    id: int
    jobs: tuple[Job, ...]
    probe: bool = False


def hang_bound_s(jobs: Sequence[Job], timeout_s: float) -> float:
    """Seconds that a batch may take, however it is split up. Pure.

    Args:
        timeout_s: limit for one image of a megapixel at 8 steps; a smaller batch may take as long.
    """
    return timeout_s * max(1.0, sum(cost(job.decoded) for job in jobs) / _FULL_COST)


def check_images(specs: Sequence[ImageSpec], images: Sequence[Image]) -> None:
    """Raise EngineError unless there is an RGB image of the right size for each spec. Pure."""
    got = [(image.mode, *image.size) for image in images]
    due = [("RGB", spec.width, spec.height) for spec in specs]
    if got != due:
        raise EngineError(f"the engine made {got} where {due} was requested")


def untold(_: Notice) -> None:
    """Do nothing: where no progress is published."""


class _SickError(Exception):
    """The known-good image failed."""


class EngineThread(threading.Thread):
    """Runs batches in order: one runs while others wait on deck.

    Args:
        engine: not loaded yet; from :meth:`start` on, only this thread uses it.
        limits: batch limits; told which batches did not fit.
        deliver: receives each finished image, without blocking.
        report: receives outcomes; called from this thread.
        tell: receives notices of progress, without blocking; called from this thread.
        tells_steps: whether to tell the steps of a generation too, if the engine reports them.
        tells_previews: whether to tell the previews that requests ask for, if the engine makes them.
    """

    def __init__(
        self,
        engine: Engine,
        limits: BatchLimits,
        deliver: Callable[[Job, Image, Timings], None],
        report: Callable[[Outcome], None],
        metrics: Metrics,
        settings: EngineSettings,
        tell: Callable[[Notice], None] = untold,
        tells_steps: bool = False,
        tells_previews: bool = False,
    ) -> None:
        super().__init__(name="engine", daemon=True)
        self._engine = engine
        self._telling = TellingEngine(engine, tell, tells_steps, tells_previews)
        self._tell = tell
        self._limits = limits
        self._hang_timeout_s = settings.hang_timeout_s
        self._leaks = LeakWatch(settings.leak_limit_bytes)
        self._leaked = False
        self._deadline = float("inf")
        self._deliver = deliver
        self._report = report
        self._metrics = metrics
        self._deck: deque[Batch] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.image_s = 0.0
        """Moving average of the seconds per image; 0 before the first."""
        self._loaded = threading.Event()
        self._load_error: Exception | None = None

    def wait_loaded(self) -> None:
        """Wait until the engine can generate. Raises whatever its ``load`` raised."""
        self._loaded.wait()
        if self._load_error is not None:
            raise self._load_error

    def submit(self, batch: Batch) -> None:
        """Put a batch on deck."""
        with self._changed:
            self._deck.append(batch)
            self._changed.notify()

    def withdraw(self, batch_id: int) -> bool:
        """Take a batch off deck. Returns ``False`` if it runs or has run."""
        with self._changed:
            for batch in self._deck:
                if batch.id == batch_id:
                    self._deck.remove(batch)
                    return True
        return False

    def overdue(self) -> bool:
        """Whether the running batch takes longer than a batch of its shape should."""
        return time.monotonic() > self._deadline

    def stop(self) -> None:
        """End the thread after the running batch; batches on deck are dropped."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def run(self) -> None:
        try:
            self._engine.load()
        except Exception as error:
            self._load_error = error
            return
        finally:
            self._loaded.set()
        try:
            self._serve()
        except Exception as error:
            # Unreported, the worker would stay ready and serve nothing forever.
            log.exception("the engine's thread failed; only a new process has another")
            self._report(EngineLost(error, sick=False))
        finally:
            self._engine.close()

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            self._deadline = time.monotonic() + hang_bound_s(batch.jobs, self._hang_timeout_s)
            self._report(Generating(batch.jobs))
            try:
                if batch.probe:
                    self._prove_healthy()
                self._run(batch.jobs)
            except ContextLostError as error:
                self._report(EngineLost(error, sick=False))
                return
            except _SickError as error:
                self._report(EngineLost(error, sick=True))
                return
            finally:
                self._deadline = float("inf")
            self._report(BatchDone(batch.id))
            self._watch_memory()

    def _next(self) -> Batch | None:
        with self._changed:
            while not self._deck and not self._stopping:
                if not self._changed.wait(IDLE_S):
                    self._engine.idle()
                    self._measure_memory()
            return None if self._stopping else self._deck.popleft()

    def _run(self, jobs: Sequence[Job]) -> None:
        """Generate the jobs, in smaller batches where one fails, until each has an image or its own error."""
        first = jobs[0].decoded
        waiting = list(jobs)
        # The batch may have been put on deck before another one showed what fits.
        size = self._limits.largest(first.width, first.height)
        while waiting:
            part, waiting = self._still_wanted(waiting[:size]), waiting[size:]
            if not part:
                continue
            timings = self._begin(part)
            try:
                images, elapsed = self._generate(part)
            except ContextLostError:
                raise
            except GenerationCancelledError:
                log.info("a batch of %d was cut short: nobody wants its images any more", len(part))
                waiting = self._still_wanted(part) + waiting
                continue
            except Exception as error:
                if isinstance(error, OutOfMemoryError):
                    self._metrics.out_of_memory.inc()
                if len(part) == 1:
                    self._fail(part[0], error, timings[0])
                    continue
                waiting = part + waiting
                # Out of memory: half may fit. Otherwise only running alone shows whose error it is.
                size = 1
                if isinstance(error, OutOfMemoryError):
                    size = self._limits.did_not_fit(first.width, first.height, len(part))
                log.warning("a batch of %d failed, continuing in batches of %d: %s", len(part), size, error)
                continue
            self._limits.fitted(first.width, first.height, len(part))
            self._report(Generated(tuple(part)))
            self._tell(notice_of(ProgressStage.GENERATED, part, first.steps, first.steps))
            for job, image, began in zip(part, images, timings, strict=True):
                log.debug("generated", extra=job.log)
                made = replace(began.after("generate", elapsed), generate_ms=elapsed * 1e3)
                self._deliver(job, image, made)

    def _still_wanted(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs whose images are wanted; ends those that were cancelled."""
        wanted = []
        for job in jobs:
            # Read once: the Kafka thread may set it at any moment.
            cancelled = job.cancelled
            if cancelled is not None:
                self._report(Failed(job, cancelled))
            elif not job.gone:
                wanted.append(job)
        return wanted

    def _begin(self, jobs: Sequence[Job]) -> list[Timings]:
        """Timings of attempts that begin now."""
        started_at = now()
        waits = [max(0.0, (started_at - job.requested_at).total_seconds()) for job in jobs]
        for waited in waits:
            self._metrics.wait_seconds.observe(waited)
        return [Timings(started_at, waited * 1e3).after("wait", waited) for waited in waits]

    def _generate(self, jobs: Sequence[Job]) -> tuple[list[Image], float]:
        """The images of these jobs, and how many seconds they took."""
        started = time.monotonic()
        failpoint("generating")
        try:
            specs = [job.spec for job in jobs]
            self._tell(notice_of(ProgressStage.STARTED, jobs, 0, specs[0].steps))
            images = self._telling.generate(specs, jobs)
        finally:
            elapsed = time.monotonic() - started
            self._metrics.engine_busy_seconds.inc(elapsed)
        check_images(specs, images)
        self._metrics.generate_seconds.observe(elapsed)
        self._metrics.batch_size.observe(len(jobs))
        self.image_s += (elapsed / len(jobs) - self.image_s) * (_RECENT if self.image_s else 1.0)
        return images, elapsed

    def _fail(self, job: Job, error: Exception, timings: Timings) -> None:
        if not isinstance(error, RequestError | OutOfMemoryError):
            self._prove_healthy()
        self._report(Failed(job, error, timings))

    def _measure_memory(self) -> int | None:
        """Export the device's memory use. Returns the bytes in use, where the engine counts them."""
        memory = self._engine.device_memory()
        for kind, size in memory.items():
            self._metrics.device_memory_bytes.labels(kind).set(size)
        return memory.get("allocated")

    def _watch_memory(self) -> None:
        allocated = self._measure_memory()
        grown = None if allocated is None or self._leaked else self._leaks.grown(allocated)
        if grown is not None:
            self._leaked = True
            self._report(MemoryLeaked(grown))

    def _prove_healthy(self) -> None:
        try:
            check_images([KNOWN_GOOD], self._engine.generate([KNOWN_GOOD]))
        except ContextLostError:
            raise
        except Exception as error:
            raise _SickError(f"the known-good image failed: {error}") from error
