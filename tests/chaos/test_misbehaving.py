"""The proxy that makes a store misbehave does what it claims, and nothing more."""

from __future__ import annotations

import http.client
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaitingError

import pytest
from minio.error import S3Error

from tests.chaos import misbehaving
from tests.chaos.misbehaving import MisbehavingStore, Trouble, open_misbehaving
from tests.services import MinioAddress
from zimage_stream.errors import StoreMisconfiguredError, StoreRejectedError, StoreUnavailableError
from zimage_stream.stores.minio import MinioStore

KEY, PNG = "tenant/a.png", "image/png"


@pytest.fixture
def proxy(minio: MinioAddress, monkeypatch: pytest.MonkeyPatch) -> Iterator[MisbehavingStore]:
    """A proxy that hits every exchange."""
    monkeypatch.setattr(misbehaving, "HIT", 1.0)
    with open_misbehaving(minio.endpoint, "/refused/", random.Random(1)) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: MisbehavingStore, minio: MinioAddress, bucket: str) -> Iterator[MinioStore]:
    """The product's client, which only knows the proxy's address. With a region, it requests none first."""
    settings = minio.settings(bucket).model_copy(update={"endpoint": proxy.endpoint, "region": "us-east-1"})
    store = MinioStore(settings)
    yield store
    store.close()


def test_without_trouble_it_behaves_like_the_store(store: MinioStore, proxy: MisbehavingStore) -> None:
    store.check()
    assert store.stat(KEY) is None
    assert store.put(KEY, b"data", PNG, {"by": "first"}).created
    again = store.put(KEY, b"other", PNG, {"by": "second"})
    assert not again.created
    assert (again.object.size_bytes, again.object.metadata["by"]) == (4, "first")
    assert store.get(KEY) == b"data"
    assert not proxy.played


def test_a_connection_serves_one_request_after_another(proxy: MisbehavingStore, bucket: str) -> None:
    connection = http.client.HTTPConnection(proxy.endpoint, timeout=120)
    kept = []
    # Without a signature: the store refuses, with a body and without.
    for method in ("GET", "HEAD", "PUT", "GET"):
        connection.request(method, f"/{bucket}/{KEY}", b"data" if method == "PUT" else None)
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (403, method != "HEAD")
        kept.append(connection.sock)
    connection.close()
    assert set(kept) == {kept[0]}


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (Trouble.BUSY, StoreUnavailableError),
        (Trouble.FORBIDDEN, StoreMisconfiguredError),
        (Trouble.RESET, StoreUnavailableError),
    ],
)
def test_an_exchange_spoiled_before_the_store_stores_nothing(
    store: MinioStore, proxy: MisbehavingStore, trouble: Trouble, told: type[Exception]
) -> None:
    with proxy.playing(trouble):
        for call in (lambda: store.put(KEY, b"data", PNG, {}), lambda: store.stat(KEY), store.probe):
            with pytest.raises(told):
                call()
    assert proxy.played == {trouble: 3}
    assert store.put(KEY, b"data", PNG, {}).created


def test_a_reply_is_lost_after_the_object_was_stored(store: MinioStore, proxy: MisbehavingStore) -> None:
    with proxy.playing(Trouble.REPLY_LOST):
        with pytest.raises(StoreUnavailableError):
            store.put(KEY, b"data", PNG, {"by": "first"})
        # A client that finds the object there has stored nothing, and learns so.
        again = store.put(KEY, b"data", PNG, {"by": "second"})
    assert (again.created, again.object.metadata["by"]) == (False, "first")
    assert proxy.played == {Trouble.REPLY_LOST: 1}


def test_stalled_exchanges_are_served_when_the_trouble_is_over(
    store: MinioStore, proxy: MisbehavingStore, minio: MinioAddress, bucket: str
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with proxy.playing(Trouble.STALLED):
            waiting = pool.submit(store.put, KEY, b"data", PNG, {})
            with pytest.raises(StillWaitingError):
                waiting.result(0.5)
            with pytest.raises(S3Error):
                minio.client().stat_object(bucket, KEY)
        assert waiting.result(120).created
    assert proxy.played == {Trouble.STALLED: 1}


def test_one_object_is_refused_while_others_are_accepted(store: MinioStore, proxy: MisbehavingStore) -> None:
    with pytest.raises(StoreRejectedError):
        store.put("refused/a.png", b"data", PNG, {})
    store.probe()
    assert store.stat("refused/a.png") is None
    assert proxy.played == {Trouble.REFUSED: 1}
