"""Records that our clients never send, and that the Python client cannot send."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import confluent_kafka

_ERROR_BYTES = 512
_END, _TOPIC, _PARTITION, _VALUE, _KEY, _COPY, _TIMESTAMP, _HEADERS = 0, 1, 3, 4, 5, 7, 8, 10
_FLUSH_MS = 60_000

RawHeader = tuple[bytes, bytes | None]


class _Message(ctypes.Structure):
    """librdkafka's rd_kafka_message_t."""

    _fields_ = (
        ("err", ctypes.c_int),
        ("rkt", ctypes.c_void_p),
        ("partition", ctypes.c_int32),
        ("payload", ctypes.c_void_p),
        ("len", ctypes.c_size_t),
        ("key", ctypes.c_void_p),
        ("key_len", ctypes.c_size_t),
        ("offset", ctypes.c_int64),
        ("private", ctypes.c_void_p),
    )


_Delivered = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(_Message), ctypes.c_void_p)


def library() -> ctypes.CDLL:
    """The librdkafka that the Python client ships and has loaded."""
    package = Path(confluent_kafka.__file__).parent
    places = (package.parent / "confluent_kafka.libs", package / ".dylibs", package)
    (path,) = [file for place in places for file in sorted(place.glob("librdkafka*"))][:1]
    found = ctypes.CDLL(str(path))
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_headers_new"):
        getattr(found, name).restype = ctypes.c_void_p
    return found


class RawProducer:
    """Sends anything that the protocol allows: arbitrary bytes as header names, any number as a timestamp,
    values of any size. A context manager."""

    def __init__(self, bootstrap_servers: str, compression: str = "none") -> None:
        self._library = library()
        conf = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        for name, value in {
            "bootstrap.servers": bootstrap_servers,
            "message.max.bytes": str(512 << 20),
            "compression.type": compression,
            "linger.ms": "0",
        }.items():
            failed = self._library.rd_kafka_conf_set(conf, name.encode(), value.encode(), error, _ERROR_BYTES)
            assert not failed, error.value
        self._offsets: list[int | None] = []
        self._delivered = _Delivered(self._note)
        self._library.rd_kafka_conf_set_dr_msg_cb(conf, self._delivered)
        handle = self._library.rd_kafka_new(0, conf, error, _ERROR_BYTES)
        assert handle, error.value
        self._handle = ctypes.c_void_p(handle)

    def __enter__(self) -> RawProducer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.rd_kafka_destroy(self._handle)

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[RawHeader] = (),
        timestamp: int = 0,
        partition: int = 0,
    ) -> int | None:
        """Send one record in a batch of its own, and wait for the broker's answer. Returns its offset, or
        ``None`` if the broker refuses it.

        Args:
            timestamp: milliseconds since 1970; 0 for now.
        """
        made = ctypes.c_void_p(self._library.rd_kafka_headers_new(ctypes.c_size_t(len(headers))))
        for name, each in headers:
            size = ctypes.c_ssize_t(-1 if each is None else len(each))
            self._library.rd_kafka_header_add(made, name, ctypes.c_ssize_t(len(name)), each, size)
        failed = self._library.rd_kafka_producev(
            self._handle,
            *(ctypes.c_int(_TOPIC), topic.encode(), ctypes.c_int(_PARTITION), ctypes.c_int32(partition)),
            *(ctypes.c_int(_VALUE), value, ctypes.c_size_t(len(value or b""))),
            *(ctypes.c_int(_KEY), key, ctypes.c_size_t(len(key or b""))),
            *(ctypes.c_int(_COPY), ctypes.c_int(2), ctypes.c_int(_TIMESTAMP), ctypes.c_int64(timestamp)),
            *(ctypes.c_int(_HEADERS), made, ctypes.c_int(_END)),
        )
        assert not failed, failed
        assert self._library.rd_kafka_flush(self._handle, _FLUSH_MS) == 0
        return self._offsets.pop()

    def _note(self, _: object, message: Any, __: object) -> None:
        self._offsets.append(None if message.contents.err else message.contents.offset)
