"""librdkafka's mock cluster, with errors on demand.

The Python client exposes the cluster but not the errors; the library that it ships has functions for both.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from enum import IntEnum
from types import TracebackType

from tests.fleet.wire import library

_PRODUCER = 0
_ERROR_BYTES = 512
_OPERATION_GAP_S = 0.002
"""The cluster's thread misses the wake-up of an operation right after another, and notices a second later."""


class Request(IntEnum):
    """API keys of the requests that a transaction makes."""

    PRODUCE = 0
    LIST_OFFSETS = 2
    METADATA = 3
    FIND_COORDINATOR = 10
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9


def _library() -> ctypes.CDLL:
    """The library file that the client has loaded."""
    found = library()
    found.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    found.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    return found


class MockCluster:
    """One broker that answers as instructed. A context manager that costs milliseconds: use one per test.

    It draws producer ids at random from 900 000 and does not check them against those given out before. If
    two transactional ids get the same one, everything the later one sends is refused permanently, as is the
    new epoch that an abort requests. With 150 producers this happens in one cluster of 80; with those of one
    test, which share a transactional id, practically never.
    """

    def __enter__(self) -> MockCluster:
        self._library = _library()
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        conf = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        owner = self._library.rd_kafka_new(_PRODUCER, conf, error, _ERROR_BYTES)
        assert owner, error.value.decode()
        self._owner = ctypes.c_void_p(owner)
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._owner, 1))
        # A group's first join waits 3 s by default for more members.
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._owner)

    @property
    def bootstrap_servers(self) -> str:
        found: bytes = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        return found.decode()

    def create_topic(self, name: str, partitions: int = 4) -> None:
        """Create a topic; a subscription alone creates none."""
        self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        time.sleep(_OPERATION_GAP_S)

    def answer(self, request: Request, errors: Sequence[int]) -> None:
        """Answer the next requests of this kind with these errors, one each, by Kafka's error numbers."""
        codes = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(request), ctypes.c_size_t(len(errors)), codes
        )

    def answer_in_order(self, request: Request) -> None:
        """Drop the errors that have not been used."""
        self._library.rd_kafka_mock_clear_request_errors(self._cluster, ctypes.c_int16(request))
