"""Record headers of requests, results and dead letters."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from zimage_stream.events.headers import dead_letter_headers, request_headers, result_headers, trace_context
from zimage_stream.events.image_result import ImageResult, Source, Status
from zimage_stream.events.prompt_request import PromptRequest

AT = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC)
TRACE = [("traceparent", b"00-a-b-01"), ("tracestate", b"x=1")]


def die(headers: list[tuple[str, bytes | None]], **changes: Any) -> list[tuple[str, bytes | None]]:
    reason: dict[str, Any] = {
        "topic": "requests",
        "partition": 3,
        "offset": 14,
        "exception_class": "WireError",
        "message": "no Avro",
        "code": "UNDECODABLE",
        "attempts": 0,
        "worker": "w",
        "at": AT,
    }
    return dead_letter_headers(headers, **reason | changes)


def test_a_request_is_a_cloud_event_followed_by_its_authors_headers() -> None:
    request = PromptRequest(prompt="p", request_id="a", created_at=AT)
    headers = request_headers(request, "/upstream", TRACE)
    assert dict(headers[:6]) == {
        "ce_specversion": b"1.0",
        "ce_id": b"a",
        "ce_source": b"/upstream",
        "ce_type": b"zimage.PromptRequest.v1",
        "ce_time": b"2026-01-02T03:04:05.678+00:00",
        "content-type": b"application/avro",
    }
    assert headers[6:] == TRACE


def test_a_result_has_an_id_of_its_own_and_the_trace_of_its_request() -> None:
    result = ImageResult(
        request_id="a",
        status=Status.SUCCEEDED,
        source=Source(topic="requests", partition=3, offset=14),
        requested_at=AT,
        completed_at=AT,
        worker="w",
    )
    headers = result_headers(result, [("ce_id", b"a"), ("mine", b"1"), *TRACE])
    assert dict(headers)["ce_id"] == b"requests/3/14"
    assert dict(headers)["ce_type"] == b"zimage.ImageResult.v1"
    assert trace_context(headers) == TRACE
    assert "mine" not in dict(headers)


def test_a_dead_letter_keeps_the_original_headers_and_states_the_reason() -> None:
    sent: list[tuple[str, bytes | None]] = [("mine", b"\xff"), ("mine", None), ("ce_id", b"a")]
    headers = die(sent)
    assert headers[:3] == sent
    said = dict(headers[3:])
    assert said["__connect.errors.topic"] == b"requests"
    assert said["__connect.errors.partition"] == b"3"
    assert said["__connect.errors.offset"] == b"14"
    assert said["__connect.errors.exception.class.name"] == b"WireError"
    assert said["__connect.errors.exception.message"] == b"no Avro"
    assert said["zimage.code"] == b"UNDECODABLE"


def test_a_record_that_fails_again_gets_new_reasons() -> None:
    once = die([("mine", b"1")])
    twice = die(once, message="still no Avro")
    assert len(twice) == len(once)
    assert dict(twice)["__connect.errors.exception.message"] == b"still no Avro"


def test_a_long_message_is_cut_between_characters() -> None:
    said = dict(die([], message="灯" * 10_000))["__connect.errors.exception.message"]
    assert said is not None
    assert len(said) < 2_100
    assert said.decode().startswith("灯灯")
