"""Every record can be read, whatever it contains."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

from confluent_kafka import Message
from hypothesis import example, given
from hypothesis import strategies as st

from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import ImageResult, Status
from zimage_stream.kafka.record import record_of

CODEC = Codec()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

longs = st.integers(-(2**63), 2**63 - 1)


class AnyMessage:
    """A message as the client may return it."""

    def __init__(self, timestamp: tuple[int, int], headers: Any, key: bytes | None, value: bytes | None):
        self.timestamp = lambda: timestamp
        self.key, self.value = lambda: key, lambda: value
        self.topic, self.partition, self.offset = lambda: "requests", lambda: 0, lambda: 7
        self._headers = headers

    def headers(self) -> Any:
        if isinstance(self._headers, Exception):
            error, self._headers = self._headers, [("<NULL>", b"")]
            raise error
        return self._headers


NO_TEXT = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
any_bytes = st.none() | st.binary(max_size=20)


@given(
    st.tuples(st.integers(0, 2), longs),
    st.none()
    | st.lists(st.tuples(st.text(max_size=5), any_bytes | st.text(max_size=5)), max_size=4)
    | st.sampled_from([SystemError("it returned a result with an exception set"), NO_TEXT]),
    any_bytes,
    any_bytes,
)
@example((1, 1_785_000_000_000_000), None, None, b"")
@example((1, -(10**15)), None, None, b"")
@example((1, -1), [], None, None)
def test_any_record_is_read(
    timestamp: tuple[int, int], headers: Any, key: bytes | None, value: bytes | None
) -> None:
    before = datetime.now(UTC)
    record = record_of(cast(Message, AnyMessage(timestamp, headers, key, value)))
    assert (record.key, record.value, record.offset) == (key, value, 7)
    assert (record.headers_lost is not None) == isinstance(headers, Exception)
    assert all(each is None or isinstance(each, bytes) for _, each in record.headers)
    kind, milliseconds = timestamp
    if kind and 0 <= milliseconds < 253_402_300_800_000:
        assert (record.timestamp - EPOCH) / timedelta(milliseconds=1) == milliseconds
    else:
        assert before <= record.timestamp <= datetime.now(UTC)
    # A result can refer to it.
    source = record.source
    result = ImageResult(
        request_id="r",
        status=Status.FAILED,
        source=source,
        requested_at=record.timestamp,
        completed_at=before,
    )
    assert CODEC.decode_result(CODEC.encode_result(result, "t")).source == source
