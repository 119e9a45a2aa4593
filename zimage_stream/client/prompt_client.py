"""The client, which publishes requests and reads their results."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta

from zimage_stream import forks
from zimage_stream.client.following import follow_progress
from zimage_stream.client.mailbox import Mailbox, Submission
from zimage_stream.client.submitting import Submitted, submit_each
from zimage_stream.deadline import Deadline
from zimage_stream.errors import ResultTimeoutError, SubmitError, TopicMissingError, ZImageError
from zimage_stream.events.cancellation import Cancellation, check_reason
from zimage_stream.events.codec import create_codec
from zimage_stream.events.headers import Header, request_headers
from zimage_stream.events.image_result import ImageResult, Source
from zimage_stream.events.progress import Progress
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.rules import Limits, check_request
from zimage_stream.kafka.canceller import Canceller
from zimage_stream.kafka.progress import ProgressReader
from zimage_stream.kafka.reader import POLL_S, ResultReader
from zimage_stream.kafka.submitter import ACCEPT_TIMEOUT_S, Submitter
from zimage_stream.settings import Settings, load_settings

log = logging.getLogger(__name__)

SOURCE = "/zimage/client"
"""Value of the header ``ce_source`` of our requests."""

_PROGRESS_KEPT = timedelta(hours=1)
_CLOCKS = timedelta(minutes=1)
"""How far the clocks of workers may be behind ours."""

Headers = Mapping[str, str] | Iterable[Header]


class PromptClient:
    """Publishes requests and reads their results.

    ::

        with PromptClient() as client:
            request_id = client.submit(PromptRequest(prompt="a lighthouse in fog"))
            print(client.wait(request_id, timeout=120).image.uri)

    Thread-safe, except that :meth:`close` must not run until all other calls have returned. With asyncio, use
    ``asyncio.to_thread``. The client connects at the first call, not on construction.

    Results are read from the offsets at which the results topic ended before this client's first submission,
    so none is missed, however late it is requested.

    Args:
        settings: by default, the settings are read with :func:`~zimage_stream.load_settings`.

    Raises:
        SettingsError: the settings cannot be read.

    All exceptions are importable from :mod:`zimage_stream`.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = load_settings() if settings is None else settings
        self._codec = create_codec(self._settings.registry)
        self._limits = Limits(self._settings.engine.max_pixels, self._settings.engine.allow_guidance)
        self._submitter = Submitter(self._settings.kafka, self._settings.topics.requests)
        self._canceller = Canceller(
            self._settings.kafka, self._settings.topics.cancellations, self._codec, SOURCE
        )
        self._starting = threading.Lock()
        self._start: Mapping[int, int] | None = None
        self._unreadable: TopicMissingError | None = None
        # Guards all attributes below; notified of new results, and when a thread stops reading for others.
        self._news = threading.Condition()
        self._mailbox = Mailbox()
        self._horizon: Mapping[int, int] = {}
        self._reader: ResultReader | None = None
        self._being_read = False
        forks.register(self)

    def after_fork(self) -> None:
        """Start afresh with the child's own reader; the child may wait for requests that its parent sent."""
        self._starting, self._news = threading.Lock(), threading.Condition()
        forks.leak(self._reader)
        self._reader, self._being_read = None, False

    def __enter__(self) -> PromptClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the connections. Accepted requests are processed without this client."""
        self._submitter.close()
        self._canceller.close()
        self._codec.close()
        if self._reader is not None:
            self._reader.close()

    # -- submitting

    def submit(self, request: PromptRequest, *, headers: Headers = ()) -> str:
        """Send a request, and return its ``request_id`` once the brokers have acknowledged it.

        Args:
            headers: additional record headers; ``traceparent`` and ``tracestate`` are copied to the result.

        Raises:
            RequestError: the request breaks a rule; nothing was sent.
            BrokerUnavailableError, TopicMissingError: no broker answers, or the requests topic does not
                exist; nothing was sent.
            RegistryUnavailableError, SchemaMissingError: the schema's id is unavailable; nothing was sent.
            SubmitError: the brokers did not acknowledge the request.
        """
        self.submit_nowait(request, headers=headers).result()
        return request.request_id

    def submit_nowait(self, request: PromptRequest, *, headers: Headers = ()) -> Future[Source]:
        """Send a request without waiting for the acknowledgement.

        Returns:
            A future of the record's location in the requests topic. It raises SubmitError if the brokers did
            not acknowledge the record. Its callbacks run on the client's own thread and must be short.

        Raises:
            RequestError, BrokerUnavailableError, TopicMissingError, RegistryUnavailableError,
            SchemaMissingError: as :meth:`submit`; nothing was sent.
        """
        request = check_request(request, self._limits)
        value = self._codec.encode_request(request, self._settings.topics.requests)
        more = headers.items() if isinstance(headers, Mapping) else headers
        extra = [(name, text.encode() if isinstance(text, str) else text) for name, text in more]
        self._note_start()
        with self._news:
            submission = self._mailbox.sending(request.request_id, self._horizon, request.tenant)
        future: Future[Source] = Future()

        def settled(answer: Source | SubmitError) -> None:
            with self._news:
                if isinstance(answer, Source):
                    self._mailbox.accepted(submission, answer)
                else:
                    self._mailbox.refused(submission)
                self._news.notify_all()
            # A caller that has cancelled the future must not get an outcome.
            if future.set_running_or_notify_cancel():
                if isinstance(answer, SubmitError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

        self._submitter.send(request.request_id, value, request_headers(request, SOURCE, extra), settled)
        return future

    def submit_many(
        self,
        requests: Iterable[PromptRequest],
        on_failure: Callable[[PromptRequest, ZImageError], None] | None = None,
    ) -> Submitted:
        """Send requests as the iterable yields them, and return when each has been accepted or has failed.

        Memory is bounded for any number of requests: at most 2,000 are in flight at a time.

        Args:
            on_failure: called, on the caller's thread, with each request that breaks a rule (RequestError) or
                was not accepted (SubmitError); the others continue. By default such errors are logged.

        Raises:
            BrokerUnavailableError, TopicMissingError, RegistryUnavailableError, SchemaMissingError: all
                remaining requests would fail too.
        """
        return submit_each(self.submit_nowait, requests, on_failure)

    # -- cancelling

    def cancel(self, request_id: str, reason: str | None = None) -> bool:
        """Ask that a request of this client be ended; return once the brokers have acknowledged that.

        The request still gets exactly one result. It is CANCELLED, unless the request has ended already or
        its image is being stored.

        Args:
            reason: why, for people; the result's error message repeats it. At most 500 characters.

        Returns:
            Whether the cancellation was sent. It was not if the request was not sent by this client or not
            acknowledged, if it was followed by 65,536 others, or if its result has been read.

        Raises:
            RequestError: the reason is too long, or has control characters.
            BrokerUnavailableError, TopicMissingError: no broker answers, or the cancellations topic does not
                exist.
            SubmitError: the brokers did not acknowledge the cancellation.
            RegistryUnavailableError, SchemaMissingError: the schema's id is unavailable.
        """
        check_reason(reason)
        source, tenant = self._location(request_id)
        if source is None:
            return False
        cancellation = Cancellation(
            request_id=request_id,
            tenant=tenant,
            source=source,
            reason=reason,
            requested_at=datetime.now(UTC),
        )
        self._canceller.send([cancellation])
        return True

    # -- reading

    def wait(self, request_id: str, timeout: float | None = None) -> ImageResult:
        """Return the result of a request, which may have arrived long ago.

        The result belongs to the record that this client sent, not to an older record with the same id. For a
        request of another client, or one more than 65,536 submissions ago, it is the first result with that
        id since this client's first call.

        Args:
            timeout: in seconds; by default there is no limit.

        Raises:
            ResultTimeoutError: the result did not arrive within ``timeout``.
            BrokerUnavailableError: no broker answered within ``timeout``.
            TopicMissingError: the results topic does not exist or may not be read.
            RegistryUnavailableError: the schema of a result is unavailable; the next call retries.
        """
        deadline = Deadline(timeout)
        with self._news:
            submission = self._mailbox.get(request_id)
            while submission is not None and submission.pending:
                if deadline.passed:
                    problem = self._reader.topic.connection_error if self._reader else None
                    raise problem or ResultTimeoutError([request_id], deadline.timeout_s)
                if self._being_read:
                    self._news.wait(deadline.within(POLL_S))
                else:
                    self._read_for(submission, deadline)
            if submission is not None and submission.result is not None:
                return submission.result
        return next(self._results([request_id], None, deadline))

    def results(
        self,
        request_ids: Iterable[str] | None = None,
        *,
        batch_id: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[ImageResult]:
        """Yield results as they arrive, including those since this client's first call.

        Each iterator has its own reader and reads as fast as it is consumed; for a single result,
        :meth:`wait` is cheaper.

        Args:
            request_ids: the iteration yields one result for each of these, and then ends.
            batch_id: only results of this batch. Their number is unknown, so the iteration ends after
                ``timeout``.
            timeout: for the whole iteration, in seconds.

        Raises:
            ResultTimeoutError: results of ``request_ids`` are missing after ``timeout``.
            BrokerUnavailableError: no broker answers, or none answered within ``timeout``.
            TopicMissingError, RegistryUnavailableError: as :meth:`wait`.
        """
        return self._results(request_ids, batch_id, Deadline(timeout))

    def _results(
        self, request_ids: Iterable[str] | None, batch_id: str | None, deadline: Deadline
    ) -> Iterator[ImageResult]:
        self._note_start()
        wanted: dict[str, Submission | None] | None = None
        since = self._start
        if request_ids is not None:
            with self._news:
                wanted = {request_id: self._mailbox.get(request_id) for request_id in request_ids}
            since = _earliest(wanted.values(), self._start or {})
        with self.open_reader(since) as reader:
            while wanted is None or wanted:
                result = reader.poll(deadline.within(POLL_S))
                if result is not None and _matches(result, wanted, batch_id):
                    if wanted is not None:
                        del wanted[result.request_id]
                    yield result
                elif deadline.passed:
                    if reader.topic.connection_error is not None:
                        raise reader.topic.connection_error
                    if wanted:
                        raise ResultTimeoutError(wanted, deadline.timeout_s)
                    return

    def progress(self, request_ids: Iterable[str], *, timeout: float | None = None) -> Iterator[Progress]:
        """Yield what workers report of these requests, until each of them has its result.

        Progress may be lost, repeated or late, and there is none if the workers publish none or the progress
        topic does not exist; the iteration ends with the last result all the same. For requests that this
        client sent, it begins when they were sent; for others, an hour ago.

        Args:
            timeout: for the whole iteration, in seconds.

        Raises:
            ResultTimeoutError: results are missing after ``timeout``.
            BrokerUnavailableError: no broker answers, or none answered within ``timeout``.
            TopicMissingError, RegistryUnavailableError: as :meth:`wait`.
        """
        deadline = Deadline(timeout)
        self._note_start()
        with self._news:
            wanted = {request_id: self._mailbox.get(request_id) for request_id in request_ids}
        since = datetime.now(UTC) - _PROGRESS_KEPT
        if all(wanted.values()):
            since = min((each.at for each in wanted.values() if each), default=since) - _CLOCKS
        with (
            self.open_reader(_earliest(wanted.values(), self._start or {})) as results,
            self.open_progress_reader(since) as progress,
        ):
            yield from follow_progress(wanted, results, progress, deadline)

    def open_progress_reader(self, since: datetime | None = None) -> ProgressReader:
        """Create a reader of all progress. It is not thread-safe, and the caller must close it.

        Args:
            since: where to start, by the workers' clocks; by default where the topic ends.
        """
        return ProgressReader(self._settings.kafka, self._settings.topics.progress, self._codec, since)

    def open_reader(self, since: Mapping[int, int] | None = None) -> ResultReader:
        """Create a reader of all results. It is not thread-safe, and the caller must close it.

        Args:
            since: offsets by partition; by default the end of the topic before the first submission.

        Raises:
            BrokerUnavailableError: no broker answers.
            TopicMissingError: the results topic does not exist or may not be read.
        """
        self._note_start()
        if self._unreadable is not None:
            raise self._unreadable
        reader = ResultReader(self._settings.kafka, self._settings.topics.results, self._codec)
        reader.topic.start(self._start if since is None else since, growing=True)
        return reader

    # -- inside

    def _note_start(self) -> None:
        """Determine the end of the results topic once, before the first submission."""
        with self._starting:
            if self._start is not None or self._unreadable is not None:
                return
            with ResultReader(self._settings.kafka, self._settings.topics.results, self._codec) as reader:
                try:
                    self._start = self._horizon = reader.topic.end_offsets()
                except TopicMissingError as error:
                    # A client that only submits needs neither the topic nor permission to read it.
                    log.info("this client cannot read results: %s", error)
                    self._unreadable = error

    def _location(self, request_id: str) -> tuple[Source | None, str]:
        """Return the location of a pending request's record, and its tenant.

        A request that has just been sent is waited for until the brokers have acknowledged it, or will not.
        """
        deadline = Deadline(ACCEPT_TIMEOUT_S)
        with self._news:
            submission = self._mailbox.get(request_id)
            while submission is not None and submission.pending and not deadline.passed:
                if submission.source is not None:
                    return submission.source, submission.tenant
                self._news.wait(deadline.within(POLL_S))
        return None, ""

    def _read_for(self, submission: Submission, deadline: Deadline) -> None:
        """Read results for all waiting threads until this submission has its own.

        Called with ``_news`` held, and returns with it held; other threads wait for notifications meanwhile.
        """
        self._being_read = True
        self._news.release()
        try:
            reader = self._reader
            if reader is None:
                reader = self._reader = self.open_reader()
            while submission.pending and not deadline.passed:
                result = reader.poll(deadline.within(POLL_S))
                if result is None:
                    continue
                with self._news:
                    if self._mailbox.arrived(result):
                        self._news.notify_all()
        finally:
            self._news.acquire()
            self._being_read = False
            if self._reader is not None:
                # Results of later submissions lie above the positions read so far.
                self._horizon = self._reader.topic.positions
            self._news.notify_all()


def _matches(
    result: ImageResult, wanted: Mapping[str, Submission | None] | None, batch_id: str | None
) -> bool:
    if batch_id is not None and result.batch_id != batch_id:
        return False
    if wanted is None:
        return True
    if result.request_id not in wanted:
        return False
    submission = wanted[result.request_id]
    return submission is None or submission.is_subject_of(result)


def _earliest(submissions: Iterable[Submission | None], start: Mapping[int, int]) -> Mapping[int, int]:
    """Return offsets below which there is no result of these submissions."""
    distinct: dict[int, Mapping[int, int]] = {}
    for submission in submissions:
        if submission is None:
            return start
        distinct[id(submission.since)] = submission.since
    offsets = list(distinct.values()) or [start]
    return {partition: min(each.get(partition, 0) for each in offsets) for partition in start}
