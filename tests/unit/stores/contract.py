"""The contract of every image store. Each store's own tests inherit it and provide the store."""

from __future__ import annotations

import os
import string
import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zimage_stream.errors import StoreError, StoreRejectedError
from zimage_stream.stores import ImageStore, Put, StoredObject

WRITERS = 8
ROUNDS = 5
PNG = "image/png"

_WORD = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=12)
_PRINTABLE = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
METADATA = st.dictionaries(
    st.lists(_WORD, min_size=1, max_size=3).map("-".join),
    st.text(_PRINTABLE, min_size=1, max_size=100).filter(lambda value: value == value.strip()),
    max_size=6,
)
WRONG_KEYS = [
    "",
    "/",
    "/etc/passwd",
    ".",
    "..",
    "../outside.png",
    "tenant/../../outside.png",
    "tenant/./a.png",
    "tenant//a.png",
    "tenant/",
    "tenant/.hidden",
    ".metadata/a.png",
    "tenant\\..\\a.png",
    "tenant/a\0.png",
    "tenant/a\n.png",
    "tenant/a\ud800.png",
    "tenant/" + "界" * 400,
]
WRONG_METADATA = [
    {"title": "一只狐狸"},
    {"title": "café"},
    {"title": "a\nb"},
    {"title": ""},
    {"title": " a"},
    {"title": "a "},
    {"a b": "a"},
    {"a:b": "a"},
    {"": "a"},
    {"näme": "a"},
    {"title": "a" * 3000},
]


def fresh_key() -> str:
    return f"tenant/{uuid.uuid4().hex}.png"


class StoreContract:
    @pytest.fixture
    def store(self) -> ImageStore:
        raise NotImplementedError

    def test_keeps_the_bytes_it_is_given(self, store: ImageStore) -> None:
        key, data = fresh_key(), os.urandom(1000)
        assert store.stat(key) is None
        put = store.put(key, data, PNG, {"Seed": "1", "Request-Id": "r-1"})
        assert put == Put(StoredObject(key, 1000, PNG, {"seed": "1", "request-id": "r-1"}), created=True)
        assert store.stat(key) == put.object
        assert store.get(key) == data

    def test_reports_an_object_as_its_writer_described_it(self, store: ImageStore) -> None:
        @settings(max_examples=25)
        @given(metadata=METADATA, data=st.binary(max_size=100))
        def holds(metadata: dict[str, str], data: bytes) -> None:
            key = fresh_key()
            put = store.put(key, data, "image/webp", metadata)
            assert put == Put(StoredObject(key, len(data), "image/webp", metadata), created=True)
            assert store.stat(key) == put.object

        holds()

    @pytest.mark.parametrize("name", ["cache-control", "content-type", "content-encoding", "expires"])
    def test_metadata_may_be_named_like_an_http_header(self, store: ImageStore, name: str) -> None:
        key = fresh_key()
        store.put(key, b"data", PNG, {name: "mine"})
        assert store.stat(key) == StoredObject(key, 4, PNG, {name: "mine"})

    @pytest.mark.parametrize("key", ["客户/图 1.png", "a.b~c_d/-é+&?#%41.png", "a/b/c/d.png"])
    def test_accepts_any_printable_key(self, store: ImageStore, key: str) -> None:
        assert store.put(key, b"data", PNG, {}).created
        assert store.get(key) == b"data"

    # An S3 client splits uploads above 5 MiB unless told otherwise, and a multipart upload overwrites.
    @pytest.mark.parametrize("size", [0, 1, 7 << 20])
    def test_the_first_writer_wins(self, store: ImageStore, size: int) -> None:
        key, first = fresh_key(), os.urandom(size)
        winner = store.put(key, first, PNG, {"by": "first"})
        second = store.put(key, os.urandom(size) + b"more", "image/webp", {"by": "second"})
        assert second == Put(winner.object, created=False)
        assert store.get(key) == first
        assert store.stat(key) == winner.object

    def test_one_of_several_racing_writers_wins_and_all_see_its_object(self, store: ImageStore) -> None:
        with ThreadPoolExecutor(WRITERS) as pool:
            for _ in range(ROUNDS):
                key, start = fresh_key(), Barrier(WRITERS)
                pictures = [os.urandom(1000 + number) for number in range(WRITERS)]

                def write(
                    number: int, key: str = key, start: Barrier = start, of: list[bytes] = pictures
                ) -> Put:
                    start.wait(120)
                    return store.put(key, of[number], PNG, {"by": str(number)})

                puts = list(pool.map(write, range(WRITERS)))
                winners = [number for number, put in enumerate(puts) if put.created]
                assert len(winners) == 1
                stored = pictures[winners[0]]
                assert {put.object.metadata["by"] for put in puts} == {str(winners[0])}
                assert {put.object.size_bytes for put in puts} == {len(stored)}
                assert store.get(key) == stored

    @pytest.mark.parametrize("key", WRONG_KEYS, ids=ascii)
    def test_refuses_a_key_that_could_lead_elsewhere(self, store: ImageStore, key: str) -> None:
        with pytest.raises(StoreRejectedError, match="refused"):
            store.put(key, b"data", PNG, {})
        with pytest.raises(StoreRejectedError, match="refused"):
            store.stat(key)
        with pytest.raises(StoreRejectedError, match="refused"):
            store.get(key)

    @pytest.mark.parametrize("metadata", WRONG_METADATA, ids=lambda metadata: ascii(metadata)[:20])
    def test_refuses_metadata_that_would_come_back_changed(
        self, store: ImageStore, metadata: dict[str, str]
    ) -> None:
        key = fresh_key()
        with pytest.raises(StoreRejectedError, match="metadata"):
            store.put(key, b"data", PNG, metadata)
        assert store.stat(key) is None

    def test_an_unwritten_key_has_no_object(self, store: ImageStore) -> None:
        key = fresh_key()
        with pytest.raises(StoreError, match=key):
            store.get(key)
        store.put(key, b"data", PNG, {})
        assert store.stat(f"{key}/below.png") is None
        assert store.stat("tenant") is None

    def test_reports_that_it_is_writable(self, store: ImageStore) -> None:
        store.check()
        store.probe()
        store.probe()

    def test_can_be_created_again(self, store: ImageStore) -> None:
        key = fresh_key()
        store.put(key, b"data", PNG, {})
        store.create()
        assert store.get(key) == b"data"
