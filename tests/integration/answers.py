"""The other side of the topics, in a thread: receives requests and answers each in a transaction."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime

from confluent_kafka import Producer

from zimage_stream import Failure, ImageResult, PromptRequest, Settings, Source, Status, StoredImage
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.clients import transactional_config
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.stores import ImageStore

DEADLINE_S = 120.0


class ResultWriter:
    """Publishes results in transactions, as the worker does."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.topics.results
        self._codec = Codec()
        self._producer = Producer(transactional_config(settings.kafka, f"answers-{uuid.uuid4().hex}"))
        self._producer.init_transactions(DEADLINE_S)

    def write(self, results: Iterable[ImageResult], *, commit: bool = True) -> None:
        self._producer.begin_transaction()
        for result in results:
            self._producer.produce(self._topic, self._codec.encode_result(result, self._topic))
        if commit:
            self._producer.commit_transaction(DEADLINE_S)
        else:
            self._producer.flush(DEADLINE_S)
            self._producer.abort_transaction(DEADLINE_S)

    def write_raw(self, value: bytes) -> None:
        self._producer.begin_transaction()
        self._producer.produce(self._topic, value)
        self._producer.commit_transaction(DEADLINE_S)


def failed(request: PromptRequest, source: Source) -> ImageResult:
    now = datetime.now(UTC)
    return ImageResult(
        request_id=request.request_id,
        tenant=request.tenant,
        batch_id=request.batch_id,
        attributes=request.attributes,
        status=Status.FAILED,
        error=Failure(code="GENERATION_FAILED", message="it would not", retriable=True),
        source=source,
        requested_at=now,
        completed_at=now,
    )


def succeeded(request: PromptRequest, source: Source, store: ImageStore) -> ImageResult:
    data = f"a picture of {request.prompt}".encode()
    store.put(request.object_key, data, "image/png", {})
    result = failed(request, source)
    image = StoredImage(
        uri=store.uri(request.object_key),
        url=None,
        bucket=store.bucket,
        key=request.object_key,
        content_type="image/png",
        width=request.width,
        height=request.height,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        seed=request.chosen_seed,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
    )
    return ImageResult(
        **{name: getattr(result, name) for name in ("request_id", "tenant", "batch_id", "attributes")},
        status=Status.SUCCEEDED,
        image=image,
        source=source,
        requested_at=result.requested_at,
        completed_at=result.completed_at,
    )


class Answers:
    """Answers requests as they arrive: with an image, or FAILED if the prompt is ``fail``.

    The prompt ``silence`` gets no answer. A context manager.
    """

    def __init__(self, settings: Settings, store: ImageStore | None = None) -> None:
        self._settings = settings
        self._store = store
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answers")
        self.requests: list[PromptRequest] = []

    def __enter__(self) -> Answers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)

    def _run(self) -> None:
        codec, writer = Codec(), ResultWriter(self._settings)
        with TopicReader(self._settings.kafka, self._settings.topics.requests) as reader:
            reader.start()
            while not self._stop.is_set():
                record = reader.poll(0.1)
                results: list[ImageResult] = []
                while record is not None:
                    request = codec.decode_request(record.value)
                    self.requests.append(request)
                    if "silence" not in request.prompt:
                        results.append(self._answer(request, record.source))
                    # A record polled but not answered would be lost.
                    record = reader.poll(0) if len(results) < 200 else None
                if results:
                    writer.write(results)

    def _answer(self, request: PromptRequest, source: Source) -> ImageResult:
        if self._store is None or "fail" in request.prompt:
            return failed(request, source)
        return succeeded(request, source, self._store)
