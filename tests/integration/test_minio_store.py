"""The MinIO store against real MinIO, and against servers that are not an S3 store."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trustme
from minio.credentials.providers import AssumeRoleProvider
from pydantic import SecretStr

from tests.services import Minio, MinioAddress
from tests.services.errors import ServiceError
from tests.unit.stores.contract import PNG, StoreContract, fresh_key
from zimage_stream.errors import (
    StoreError,
    StoreMisconfiguredError,
    StoreRejectedError,
    StoreUnavailableError,
    ZImageError,
)
from zimage_stream.settings import StoreSettings
from zimage_stream.stores import ImageStore, connections
from zimage_stream.stores.minio import MinioStore

BOUND_S = 30.0
"""Time in seconds within which an outage must be reported: connecting may take 3 s, and a client that retries
would take minutes. The rest is for an overloaded machine."""
READ_ONLY = ["s3:GetObject", "s3:ListBucket", "s3:GetBucketLocation"]


@contextmanager
def opened(settings: StoreSettings, **changes: object) -> Iterator[MinioStore]:
    store = MinioStore(settings.model_copy(update=changes), connections=8)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def settings(minio: MinioAddress, bucket: str) -> StoreSettings:
    return minio.settings(bucket)


@pytest.fixture
def store(settings: StoreSettings) -> Iterator[MinioStore]:
    with opened(settings) as store:
        yield store


@pytest.fixture
def no_credentials_in_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith(("AWS_", "MINIO_")):
            monkeypatch.delenv(name)
    return monkeypatch


class TestContract(StoreContract):
    @pytest.fixture
    def store(self, store: MinioStore) -> MinioStore:
        return store


class TestContractBelowAPrefix(StoreContract):
    @pytest.fixture
    def store(self, settings: StoreSettings) -> Iterator[ImageStore]:
        with opened(settings, prefix="year/2026", region="us-east-1") as store:
            yield store


class TestObjects:
    def test_are_stored_under_their_key(self, store: MinioStore, minio: MinioAddress, bucket: str) -> None:
        store.put("tenant/a.png", b"data", PNG, {"sha256": hashlib.sha256(b"data").hexdigest()})
        found = minio.client().stat_object(bucket, "tenant/a.png")
        assert found.content_type == PNG
        assert (found.metadata or {})["x-amz-meta-sha256"] == hashlib.sha256(b"data").hexdigest()
        assert store.uri("tenant/a.png") == f"s3://{bucket}/tenant/a.png"

    def test_are_refused_unless_they_match_their_hash(self, store: MinioStore) -> None:
        with pytest.raises(StoreRejectedError, match="XAmzContentSHA256Mismatch"):
            store.put("tenant/a.png", b"data", PNG, {"sha256": hashlib.sha256(b"other").hexdigest()})
        assert store.stat("tenant/a.png") is None

    def test_are_stored_below_the_prefix(
        self, settings: StoreSettings, minio: MinioAddress, bucket: str
    ) -> None:
        with opened(settings, prefix="/year/2026/") as store:
            put = store.put("tenant/a.png", b"data", PNG, {})
            assert put.object.key == "tenant/a.png"
            assert store.uri("tenant/a.png") == f"s3://{bucket}/year/2026/tenant/a.png"
        assert minio.client().stat_object(bucket, "year/2026/tenant/a.png").size == 4

    def test_can_be_written_again_after_removal(
        self, store: MinioStore, minio: MinioAddress, bucket: str
    ) -> None:
        store.put("tenant/a.png", b"old", PNG, {})
        minio.client().remove_object(bucket, "tenant/a.png")
        assert store.put("tenant/a.png", b"new", PNG, {}).created

    def test_checks_and_probes_leave_no_objects(
        self, store: MinioStore, minio: MinioAddress, bucket: str
    ) -> None:
        store.check()
        store.probe()
        assert list(minio.client().list_objects(bucket, recursive=True)) == []

    def test_concurrent_checks_do_not_interfere(self, settings: StoreSettings) -> None:
        def check(_: int) -> None:
            with opened(settings) as store:
                store.check()

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(check, range(24))) == [None] * 24


class TestMisconfigured:
    def test_a_missing_bucket_is_reported_with_the_remedy(self, settings: StoreSettings) -> None:
        key = fresh_key()
        with opened(settings, bucket="zimage-no-such-bucket") as store:
            with pytest.raises(StoreMisconfiguredError) as raised:
                store.check()
            for part in ("'zimage-no-such-bucket'", settings.endpoint, "mc mb", "ZIMAGE_STORE__BUCKET"):
                assert part in str(raised.value)
            for ask in (
                lambda: store.put(key, b"", PNG, {}),
                lambda: store.stat(key),
                lambda: store.get(key),
            ):
                with pytest.raises(StoreMisconfiguredError, match="NoSuchBucket"):
                    ask()

    @pytest.mark.parametrize("region", [None, "us-east-1"])
    def test_a_bucket_can_be_created_concurrently(
        self, settings: StoreSettings, minio: MinioAddress, region: str | None
    ) -> None:
        name = f"{settings.bucket}-made"

        def create(_: int) -> None:
            with opened(settings, bucket=name, region=region) as store:
                store.create()

        try:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(create, range(4)))
            with opened(settings, bucket=name, region=region) as store:
                store.check()
        finally:
            minio.client().remove_bucket(name)

    @pytest.mark.parametrize(
        "wrong", [{"secret_key": SecretStr("wrong-secret")}, {"access_key": "nobody"}], ids=str
    )
    def test_wrong_credentials_need_an_operator(
        self, settings: StoreSettings, wrong: dict[str, object]
    ) -> None:
        key = fresh_key()
        with opened(settings, **wrong) as store:
            calls: list[Callable[[], object]] = [
                store.check,
                store.create,
                store.probe,
                partial(store.stat, key),
            ]
            for call in calls:
                with pytest.raises(StoreMisconfiguredError):
                    call()

    def test_missing_credentials_are_reported(
        self, settings: StoreSettings, no_credentials_in_environment: pytest.MonkeyPatch
    ) -> None:
        # An address for instance roles at which nothing listens.
        no_credentials_in_environment.setenv(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{closed_port()}/"
        )
        with (
            opened(settings, access_key=None, secret_key=None) as store,
            pytest.raises(StoreMisconfiguredError, match="ZIMAGE_STORE__ACCESS_KEY"),
        ):
            store.check()

    @pytest.mark.parametrize("names", [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
                                       ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY")])  # fmt: skip
    def test_credentials_come_from_the_environment(
        self,
        settings: StoreSettings,
        minio: MinioAddress,
        no_credentials_in_environment: pytest.MonkeyPatch,
        names: tuple[str, str],
    ) -> None:
        for name, value in zip(names, (minio.access_key, minio.secret_key), strict=True):
            no_credentials_in_environment.setenv(name, value)
        with opened(settings, access_key=None, secret_key=None) as store:
            store.check()

    @pytest.mark.parametrize("may_write", [False, True])
    def test_a_worker_needs_no_permission_to_delete(
        self,
        settings: StoreSettings,
        minio: MinioAddress,
        no_credentials_in_environment: pytest.MonkeyPatch,
        may_write: bool,
    ) -> None:
        role = assume(minio, [*READ_ONLY, "s3:PutObject"] if may_write else READ_ONLY)
        for name, value in zip(
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), role, strict=True
        ):
            no_credentials_in_environment.setenv(name, value)
        with opened(settings, access_key=None, secret_key=None) as store:
            if not may_write:
                with pytest.raises(StoreMisconfiguredError, match="AccessDenied"):
                    store.check()
                return
            store.check()
            store.probe()
            assert store.put("tenant/a.png", b"data", PNG, {}).created
            assert not store.put("tenant/a.png", b"other", PNG, {}).created


class TestUnavailable:
    def test_a_store_that_is_down_is_reported_in_time_and_used_again(self, own_minio: Minio) -> None:
        with opened(own_minio.address.settings("pictures")) as store:
            store.create()
            store.put("tenant/a.png", b"data", PNG, {"by": "first"})
            own_minio.kill()
            assert_unavailable(every_call(store), match=own_minio.endpoint)
            own_minio.start()
            assert not store.put("tenant/a.png", b"other", PNG, {}).created
            assert store.get("tenant/a.png") == b"data"

    def test_a_store_that_hangs_is_reported_in_time(
        self, own_minio: Minio, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connections, "TRANSFER_TIMEOUT_S", 1.0)
        with opened(own_minio.address.settings("pictures")) as store:
            store.create()
            own_minio.pause()
            try:
                assert_unavailable(
                    [lambda: store.put("tenant/a.png", b"data", PNG, {})], match="does not answer"
                )
            finally:
                own_minio.resume()
            store.check()

    @pytest.mark.parametrize(
        ("status", "kind"),
        [(200, "text/html"), (502, "text/html"), (503, "application/xml"), (404, "text/plain")],
    )
    def test_a_server_that_is_not_a_store_is_reported(self, status: int, kind: str) -> None:
        def answer(request: Request) -> None:
            request.answer(status, kind, b"<html><body>" + b"welcome " * 1000)

        with serving(answer) as endpoint, opened(elsewhere(endpoint)) as store:
            assert_unavailable(every_call(store), match=endpoint)


class TestOtherStores:
    def test_a_store_that_overwrites_fails_the_check(self) -> None:
        with (
            serving(lambda request: request.answer(200, "application/xml", b"")) as endpoint,
            opened(elsewhere(endpoint, region="us-east-1")) as store,
            pytest.raises(StoreMisconfiguredError, match="If-None-Match"),
        ):
            store.check()

    def test_conflicting_writes_are_retried_a_limited_number_of_times(self) -> None:
        writes = 0

        def answer(request: Request) -> None:
            nonlocal writes
            writes += request.command == "PUT"
            code = b"<Error><Code>ConditionalRequestConflict</Code><Message>racing</Message></Error>"
            if writes < 3 or "for-ever" in request.path:
                request.answer(409, "application/xml", code)
            else:
                request.answer(200, "application/xml", b"")

        with serving(answer) as endpoint, opened(elsewhere(endpoint, region="us-east-1")) as store:
            assert store.put("tenant/a.png", b"data", PNG, {}).created
            assert writes == 3
            with pytest.raises(StoreUnavailableError, match="keep writing and removing"):
                store.put("tenant/for-ever.png", b"data", PNG, {})

    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [
            (403, "AccessDenied", StoreMisconfiguredError),
            (503, "SlowDown", StoreUnavailableError),
            (400, "x" * (1 << 20), StoreRejectedError),
        ],
    )
    def test_a_servers_error_message_is_shortened(
        self, status: int, code: str, kind: type[ZImageError]
    ) -> None:
        body = f"<Error><Code>{code}</Code><Message>{'y' * (1 << 20)}</Message></Error>".encode()

        def answer(request: Request) -> None:
            request.answer(status, "application/xml", body)

        with serving(answer) as endpoint, opened(elsewhere(endpoint, region="us-east-1")) as store:
            with pytest.raises(kind, match=code[:10]) as raised:
                store.put("tenant/a.png", b"data", PNG, {})
            assert len(str(raised.value)) < 1_000

    def test_a_slow_upload_may_take_longer_than_connecting(self) -> None:
        """An upload that stalls for longer than the connection timeout does not fail."""
        data = bytes(32 << 20)

        def answer(request: Request) -> None:
            time.sleep(connections.CONNECT_TIMEOUT_S + 1)
            request.answer(200, "application/xml", b"")

        with serving(answer) as endpoint, opened(elsewhere(endpoint, region="us-east-1")) as store:
            assert store.put("tenant/a.png", data, PNG, {}).created


class SecureMinio(Minio):
    """MinIO over TLS, with a certificate from an unknown authority."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._authority = trustme.CA()
        self.ca = folder / "ca.pem"

    @property
    def settings(self) -> StoreSettings:
        return self.address.settings("pictures").model_copy(
            update={"secure": True, "endpoint": f"localhost:{self.port}"}
        )

    def probe(self) -> None:
        with opened(self.settings, ssl_ca_location=self.ca) as store:
            try:
                store.create()
            except ZImageError as error:
                raise ServiceError(str(error)) from error

    def _set_up(self) -> None:
        super()._set_up()
        certificate = self._authority.issue_cert("localhost")
        (self.folder / "certs").mkdir()
        certificate.private_key_pem.write_to_path(str(self.folder / "certs" / "private.key"))
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(str(self.folder / "certs" / "public.crt"), append=True)
        self._authority.cert_pem.write_to_path(str(self.ca))


class TestTls:
    @pytest.fixture
    def secure(self, tmp_path: Path, own_minio: Minio) -> Iterator[SecureMinio]:
        # own_minio is requested only to skip the test on a machine without MinIO.
        own_minio.stop()
        with SecureMinio(tmp_path / "secure") as service:
            yield service

    def test_a_certificate_is_trusted_only_with_its_authority(self, secure: SecureMinio) -> None:
        with opened(secure.settings, ssl_ca_location=secure.ca) as store:
            store.check()
            assert store.put("tenant/a.png", bytes(7 << 20), PNG, {}).created
            assert not store.put("tenant/a.png", bytes(7 << 20), PNG, {}).created
        with opened(secure.settings) as store, pytest.raises(StoreUnavailableError, match="certificate"):
            store.check()
        with opened(secure.settings, secure=False) as store:
            assert_unavailable(every_call(store), match="does not answer like an S3 store")


class Request(BaseHTTPRequestHandler):
    """A request to a server that a test plays."""

    reply: ClassVar[Callable[[Request], None]]

    def __getattr__(self, name: str) -> Callable[[], None]:
        # The base class looks for do_GET, do_PUT and so on.
        if not name.startswith("do_"):
            raise AttributeError(name)
        return lambda: type(self).reply(self)

    def answer(self, status: int, kind: str, body: bytes) -> None:
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(reply: Callable[[Request], None]) -> Iterator[str]:
    """The address of a server that answers every request with ``reply``."""
    handler: Any = type("Reply", (Request,), {"reply": reply})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def elsewhere(endpoint: str, region: str | None = None) -> StoreSettings:
    return StoreSettings(
        endpoint=endpoint, bucket="pictures", access_key="a", secret_key=SecretStr("b"), region=region
    )


def every_call(store: MinioStore) -> list[Callable[[], object]]:
    return [
        store.check,
        store.create,
        store.probe,
        lambda: store.put("tenant/a.png", b"data", PNG, {}),
        lambda: store.stat("tenant/a.png"),
        lambda: store.get("tenant/a.png"),
    ]


def assert_unavailable(calls: Sequence[Callable[[], object]], match: str) -> None:
    for call in calls:
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=match) as raised:
            call()
        assert time.monotonic() - started < BOUND_S
        assert len(str(raised.value)) < 1000


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def assume(minio: MinioAddress, actions: Sequence[str]) -> tuple[str, str, str]:
    """Access key, secret key and session token of a role that is allowed only these actions."""
    policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": ["arn:aws:s3:::*"]}],
    }
    scheme = "https" if minio.secure else "http"
    found = AssumeRoleProvider(
        sts_endpoint=f"{scheme}://{minio.endpoint}",
        access_key=minio.access_key,
        secret_key=minio.secret_key,
        policy=json.dumps(policy),
    ).retrieve()
    return found.access_key, found.secret_key, found.session_token or ""


def test_a_missing_object_is_not_an_outage(store: MinioStore) -> None:
    with pytest.raises(StoreError) as raised:
        store.get("tenant/nothing.png")
    assert type(raised.value) is StoreError
