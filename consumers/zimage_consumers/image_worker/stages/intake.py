"""Turns a record into a request that satisfies every rule."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from zimage_consumers.image_worker.stages.verdict import ExpiredError, IntakeError, WorkerCrashedError
from zimage_consumers.image_worker.window.jobs import Job
from zimage_stream.engines.base import MAX_PROMPT_TOKENS
from zimage_stream.errors import RegistryUnavailableError, RequestError, WireError
from zimage_stream.events.codec import Codec
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.rules import MAX_RECORD_BYTES, Limits, check_request
from zimage_stream.kafka.record import Record

log = logging.getLogger(__name__)


class Intake:
    """Decodes and checks records. Kafka thread only."""

    def __init__(self, codec: Codec, limits: Limits, count_tokens: Callable[[str], int | None]) -> None:
        self._codec = codec
        self._limits = limits
        self._count_tokens = count_tokens

    def decode(self, record: Record) -> PromptRequest:
        """Decode the request as it was sent.

        Raises:
            WireError: the record is not a valid request.
            RegistryUnavailableError: its schema is unavailable at the moment; the record must wait.
        """
        try:
            return self._codec.decode_request(record.value)
        except (WireError, RegistryUnavailableError):
            raise
        except Exception as error:
            # A bug of ours that this record triggered; a retry would trigger it again.
            log.exception("a record could not be read, for an unexpected reason")
            raise WireError(f"it cannot be read: {type(error).__name__}: {error}"[:300]) from error

    def check(self, job: Job) -> None:
        """Decode the job's record into ``job.request`` and check it.

        A request that breaks a rule stays on the job as it was sent, so that its result can name it.

        Raises:
            WireError, RegistryUnavailableError: as for :meth:`decode`.
            RequestError: it breaks a rule.
            IntakeError: it could not be checked, so it must not run.
        """
        request = job.request = self.decode(job.record)
        size = len(job.record.value or b"")
        if size > MAX_RECORD_BYTES:
            raise RequestError("record", f"at most {MAX_RECORD_BYTES:,} bytes", f"{size:,} bytes")

        def count(prompt: str) -> int | None:
            tokens = self._count_tokens(prompt)
            job.tokens = tokens or 0
            return tokens

        try:
            job.request = check_request(request, self._limits, count, MAX_PROMPT_TOKENS)
        except RequestError:
            raise
        except Exception as error:
            log.exception("a request could not be checked", extra=job.log)
            raise IntakeError(f"it could not be checked: {type(error).__name__}: {error}"[:300]) from error

    def check_quarantined(self, job: Job, at: datetime | None, max_attempts: int) -> None:
        """Decode and check a job under its own mark, and decide whether it may run alone.

        Args:
            at: wall-clock time, where expiry is to be judged.

        Raises:
            WorkerCrashedError: it has killed as many processes as it may.
            RequestCancelledError: it was cancelled.
            ExpiredError: it was not started in time.
            RegistryUnavailableError: its schema is unavailable at the moment.
            WireError, RequestError, IntakeError: it is refused.
        """
        if job.attempts >= max_attempts:
            if job.request is None and job.attempts == max_attempts:
                # To answer its author it must be decoded once more; if that kills too, it is never decoded.
                job.request = self.decode(job.record)
            raise WorkerCrashedError(
                f"the worker process died {job.attempts} times while this request ran alone"
            )
        if job.request is None:
            self.check(job)
        if job.cancelled is not None:
            raise job.cancelled
        expires_at = job.decoded.expires_at
        if job.suspect and at is not None and expires_at is not None and expires_at <= at:
            raise ExpiredError
