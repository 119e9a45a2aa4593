"""Delivers images: from pixels to an object in the store, in parallel with the engine."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from PIL.Image import Image

from zimage_consumers.image_worker.failpoints import failpoint
from zimage_consumers.image_worker.window.jobs import Failed, Job, LookedUp, Outcome, Stored, Timings
from zimage_stream.errors import (
    IdConflictError,
    StoreError,
    StoreMisconfiguredError,
    StoreRejectedError,
    UnavailableError,
)
from zimage_stream.events.image_result import StoredImage
from zimage_stream.events.prompt_request import EXTENSIONS, PromptRequest
from zimage_stream.imaging import Encoded, encode
from zimage_stream.stores.base import ImageStore, StoredObject
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_UP_THREADS = 8
"""Concurrent look-ups: enough for a whole batch, so that a distant store keeps no device waiting."""
STORE_REQUESTS = LOOK_UP_THREADS * len(EXTENSIONS)
"""Concurrent requests to the store for look-ups: an id may have been used for an image of another format."""
_WAIT_S, _LONGEST_WAIT_S = 0.2, 5.0


class Delivery:
    """Looks up, encodes and uploads images, with a thread pool for each; reports each outcome once.

    Args:
        report: receives outcomes; called from the pools' threads.
    """

    def __init__(
        self,
        store: ImageStore,
        *,
        model: str,
        public_base_url: str | None,
        encode_threads: int,
        upload_threads: int,
        report: Callable[[Outcome], None],
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._model = model
        self._public_base_url = public_base_url
        self._encoders = ThreadPoolExecutor(encode_threads, "encode")
        self._uploaders = ThreadPoolExecutor(upload_threads, "upload")
        self._lookers = ThreadPoolExecutor(LOOK_UP_THREADS, "look-up")
        self._format_lookers = ThreadPoolExecutor(STORE_REQUESTS - LOOK_UP_THREADS, "look-up-others")
        self._report = report
        self._health = health
        self._metrics = metrics
        self._probing: Future[None] | None = None
        self._probe_at = 0.0

    def deliver(self, job: Job, image: Image, timings: Timings) -> None:
        """Start encoding and uploading a finished image. Does not wait."""
        self._encoders.submit(self._guard, job, timings, lambda: self._encode(job, image, timings))

    def look_up(self, batch_id: int, job: Job) -> Future[None]:
        """Query the store in the background for the job's image; reports ``LookedUp``.

        A request whose result was lost with its worker, or that is sent again, costs no GPU time.

        Returns:
            a future by which to cancel it.
        """
        return self._lookers.submit(self._look_up, batch_id, job)

    def store_answers(self) -> bool:
        """Whether the store responds and accepts objects; waits for its answer.

        Raises:
            StoreError: it responds, but accepts no objects until an operator acts.
        """
        try:
            self._store.check()
        except UnavailableError as error:
            log.warning("the store does not respond: %s", error)
            self._health.down("store", str(error))
            return False
        self._health.up("store")
        return True

    def recheck(self) -> None:
        """Check whether a store that was down accepts objects, when no request does so. Does not wait."""
        if (self._probing is None or self._probing.done()) and time.monotonic() >= self._probe_at:
            self._probe_at = time.monotonic() + _LONGEST_WAIT_S
            self._probing = self._lookers.submit(self._probe)

    def _probe(self) -> None:
        try:
            self._store.probe()
        except Exception as error:
            self._health.down("store", str(error))
        else:
            self._health.up("store")

    def close(self) -> None:
        """Accept no more work. Uploads under way end with their jobs' partitions."""
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self._uploaders.shutdown(wait=False, cancel_futures=True)
        self._lookers.shutdown(wait=False, cancel_futures=True)
        self._format_lookers.shutdown(wait=False, cancel_futures=True)

    def _look_up(self, batch_id: int, job: Job) -> None:
        request = job.decoded
        ended: Stored | Failed | None = None
        started = time.monotonic()
        try:
            found = self._retry_until_answered(job, lambda: self._find(request))
            if found is not None:
                ended = Stored(job, self._image_of(request, found), reused=True)
        except Exception as error:
            ended = Failed(job, error)
        elapsed = time.monotonic() - started
        self._metrics.look_up_seconds.observe(elapsed)
        self._report(LookedUp(batch_id, job, elapsed, ended))

    def _find(self, request: PromptRequest) -> StoredObject | None:
        """The object stored under the request's id, in any format; all formats are queried in parallel."""
        others = [self._format_lookers.submit(self._store.stat, key) for key in request.other_object_keys]
        own = self._store.stat(request.object_key)
        found = [other.result() for other in others]
        return own or next(filter(None, found), None)

    def _guard(self, job: Job, timings: Timings, stage: Callable[[], None]) -> None:
        try:
            stage()
        except Exception as error:
            self._report(Failed(job, error, timings))

    def _encode(self, job: Job, image: Image, timings: Timings) -> None:
        _check_wanted(job)
        request = job.decoded
        started = time.monotonic()
        encoded = encode(image, request.format, request.quality, self._text(request))
        elapsed = time.monotonic() - started
        timings = replace(timings.after("encode", elapsed), encode_ms=elapsed * 1e3)
        self._metrics.encode_seconds.observe(elapsed)
        size = image.size
        self._uploaders.submit(self._guard, job, timings, lambda: self._upload(job, encoded, size, timings))

    def _upload(self, job: Job, encoded: Encoded, size: tuple[int, int], timings: Timings) -> None:
        _check_wanted(job)
        request = job.decoded
        started = time.monotonic()
        metadata = {
            "request-id": request.request_id,
            "sha256": hashlib.sha256(encoded.data).hexdigest(),
            "parameter-digest": request.parameter_digest,
            "width": str(size[0]),
            "height": str(size[1]),
            "seed": str(request.chosen_seed),
            "steps": str(request.steps),
            "guidance-scale": repr(float(request.guidance_scale)),
        }

        def put() -> StoredObject:
            return self._store.put(request.object_key, encoded.data, encoded.content_type, metadata).object

        stored = self._retry_until_answered(job, put)
        failpoint("uploaded")
        elapsed = time.monotonic() - started
        timings = replace(timings.after("upload", elapsed), upload_ms=elapsed * 1e3)
        self._metrics.upload_seconds.observe(elapsed)
        self._report(Stored(job, self._image_of(request, stored), timings))

    def _retry_until_answered(self, job: Job, call: Callable[[], T]) -> T:
        """Repeat the call until the store gives an answer about this object.

        A store that is down or refuses everything costs a request nothing but time. A refusal counts against
        the object only if the store accepts another object at that moment and then refuses this one again: it
        may have started accepting objects in between.
        """
        wait = _WAIT_S
        refused_alone = False
        while True:
            try:
                answer = call()
            except StoreRejectedError as error:
                try:
                    self._store.probe()
                except (StoreError, UnavailableError) as refused:
                    reason: Exception = refused
                else:
                    if refused_alone:
                        raise error
                    refused_alone = True
                    continue
            except (StoreMisconfiguredError, UnavailableError) as error:
                reason = error
            else:
                self._health.up("store")
                return answer
            refused_alone = False
            if job.gone:
                raise reason
            self._health.down("store", str(reason))
            log.warning("the store does not accept objects, retrying: %s", reason, extra=job.log)
            time.sleep(wait * random.uniform(0.7, 1.3))
            wait = min(2 * wait, _LONGEST_WAIT_S)

    def _image_of(self, request: PromptRequest, stored: StoredObject) -> StoredImage:
        """Describe a stored object for a result. Raises IdConflictError if it is a different image."""
        metadata = stored.metadata
        if metadata.get("parameter-digest") != request.parameter_digest:
            raise IdConflictError(
                f"request id {request.request_id} was used before by tenant {request.tenant} for an image "
                f"with other parameters, which is kept at {self._store.uri(stored.key)}; use a new request id"
            )
        base = self._public_base_url
        return StoredImage(
            uri=self._store.uri(stored.key),
            url=f"{base.rstrip('/')}/{stored.key}" if base else None,
            bucket=self._store.bucket,
            key=stored.key,
            content_type=stored.content_type,
            width=int(metadata["width"]),
            height=int(metadata["height"]),
            size_bytes=stored.size_bytes,
            sha256=metadata["sha256"],
            seed=int(metadata["seed"]),
            steps=int(metadata["steps"]),
            guidance_scale=float(metadata["guidance-scale"]),
        )

    def _text(self, request: PromptRequest) -> dict[str, str]:
        """Metadata embedded in an image: how to generate it again."""
        return {
            "prompt": request.prompt,
            "seed": str(request.chosen_seed),
            "steps": str(request.steps),
            "guidance_scale": repr(float(request.guidance_scale)),
            "size": f"{request.width}x{request.height}",
            "model": self._model,
            "software": "zimage_stream",
        }


def _check_wanted(job: Job) -> None:
    """Raise the error that ends a job, if it was cancelled."""
    if job.cancelled is not None:
        raise job.cancelled
