"""MinIO, or any store that speaks S3 with conditional writes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any, NoReturn, TypeVar

import urllib3
from minio import Minio
from minio.credentials.providers import (
    ChainedProvider,
    EnvAWSProvider,
    EnvMinioProvider,
    IamAwsProvider,
    Provider,
    StaticProvider,
)
from minio.error import InvalidResponseError, S3Error, ServerError

from zimage_stream.errors import (
    SettingsError,
    StoreError,
    StoreMisconfiguredError,
    StoreRejectedError,
    StoreUnavailableError,
)
from zimage_stream.settings import StoreSettings
from zimage_stream.stores.base import Put, StoredObject

LARGEST_OBJECT = 1 << 30
"""Above any picture. minio-py splits an upload at its part size, and the parts of a multipart upload
carry no condition: the second writer would overwrite the first."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 3.0, 30.0
ROUNDS = 5
"""Of a write that meets another one, before the store is taken for confused."""

_PREFIX = "x-amz-meta-"
_OPERATORS_CODES = frozenset(
    (
        "NoSuchBucket",
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
        "AuthorizationHeaderMalformed",
        "RequestTimeTooSkewed",
        "PermanentRedirect",
        "QuotaExceeded",
        "XMinioAdminBucketQuotaExceeded",
        "XMinioStorageFull",
        "InsufficientCapacity",
    )
)
_PASSING_CODES = frozenset(
    ("SlowDown", "RequestTimeout", "ServiceUnavailable", "InternalError", "OperationAborted")
)

T = TypeVar("T")


class Answer(Enum):
    """What a refusal by the store means."""

    UNAVAILABLE = auto()
    MISCONFIGURED = auto()
    REJECTED = auto()
    TAKEN = auto()
    CONFLICT = auto()
    ABSENT = auto()


def classify(status: int, code: str) -> Answer:
    """The meaning of an error response.

    Args:
        status: of HTTP.
        code: of S3, empty where the response has none.
    """
    if code in _OPERATORS_CODES or status in (401, 507):
        return Answer.MISCONFIGURED
    if status == 412:
        return Answer.TAKEN
    if status == 409:
        return Answer.CONFLICT
    if status >= 500 or status == 429 or code in _PASSING_CODES:
        return Answer.UNAVAILABLE
    if status == 404:
        return Answer.ABSENT
    if status == 403:
        return Answer.MISCONFIGURED
    return Answer.REJECTED


class _WriteOnce(urllib3.PoolManager):
    """Adds the condition to object writes, for which minio-py has no parameter."""

    def urlopen(self, method: str, url: str, redirect: bool = True, **kw: Any) -> Any:  # type: ignore[override]
        # A bucket is made by PUT too, without a body.
        if method == "PUT" and kw.get("body"):
            kw["headers"] = urllib3.HTTPHeaderDict(kw.get("headers") or {})
            kw["headers"]["If-None-Match"] = "*"
        return super().urlopen(method, url, redirect=redirect, **kw)


class MinioStore:
    """See the module.

    Args:
        connections: kept open, one for each thread.

    Raises:
        SettingsError: the endpoint is none.
    """

    def __init__(self, settings: StoreSettings, connections: int = 4) -> None:
        self.bucket = settings.bucket
        self._endpoint = settings.endpoint
        self._prefix = f"{settings.prefix.strip('/')}/" if settings.prefix.strip("/") else ""
        self._region = settings.region
        tls: dict[str, Any] = {"cert_reqs": "CERT_REQUIRED"} if settings.secure else {}
        if settings.ssl_ca_location is not None:
            tls["ca_certs"] = str(settings.ssl_ca_location)
        self._http = _WriteOnce(
            num_pools=2,
            maxsize=connections,
            block=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            # Whoever uses the store knows whether a request is still wanted, and tries again itself.
            retries=False,
            **tls,
        )
        try:
            self._client = Minio(
                settings.endpoint,
                credentials=_credentials(settings),
                secure=settings.secure,
                region=settings.region,
                http_client=self._http,
            )
        except ValueError as error:
            raise SettingsError(f"ZIMAGE_STORE__ENDPOINT: got {settings.endpoint!r}; {error}") from error

    def check(self) -> None:
        if not self._ask(lambda: self._client.bucket_exists(self.bucket), f"bucket {self.bucket}"):
            raise StoreMisconfiguredError(
                f"there is no bucket {self.bucket!r} at {self._endpoint}; make it, or name another one "
                f"in ZIMAGE_STORE__BUCKET"
            )
        self.probe()

    def create(self) -> None:
        if not self._ask(lambda: self._client.bucket_exists(self.bucket), f"bucket {self.bucket}"):
            self._ask(lambda: self._client.make_bucket(self.bucket, self._region), f"bucket {self.bucket}")

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str]) -> Put:
        for _ in range(ROUNDS):
            try:
                self._client.put_object(
                    self.bucket,
                    self._prefix + key,
                    io.BytesIO(data),
                    len(data),
                    content_type=content_type,
                    metadata=dict(metadata),
                    part_size=LARGEST_OBJECT,
                )
            except S3Error as error:
                answer = classify(error.response.status, error.code or "")
                if answer is Answer.TAKEN:
                    existing = self.stat(key)
                    if existing is not None:
                        return Put(existing, created=False)
                elif answer is not Answer.CONFLICT:
                    self._raise(error, key)
            except Exception as error:
                self._raise(error, key)
            else:
                said = {name.lower(): value for name, value in metadata.items()}
                return Put(StoredObject(key, len(data), content_type, said), created=True)
        raise StoreUnavailableError(f"{key} was written and taken away again by others {ROUNDS} times")

    def stat(self, key: str) -> StoredObject | None:
        try:
            found = self._client.stat_object(self.bucket, self._prefix + key)
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject", "ResourceNotFound"):
                return None
            self._raise(error, key)
        except Exception as error:
            self._raise(error, key)
        headers = found.metadata or {}
        metadata = {
            n.lower().removeprefix(_PREFIX): v for n, v in headers.items() if n.lower().startswith(_PREFIX)
        }
        return StoredObject(key, found.size or 0, found.content_type or "", metadata)

    def get(self, key: str) -> bytes:
        def read() -> bytes:
            response = self._client.get_object(self.bucket, self._prefix + key)
            try:
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

        return self._ask(read, key)

    def probe(self) -> None:
        # A fixed key: being taken already is as good an answer as being written.
        key = ".zimage-probe"
        self.put(key, b"probe", "text/plain", {})
        self._ask(lambda: self._client.remove_object(self.bucket, self._prefix + key), key)

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._prefix}{key}"

    def close(self) -> None:
        self._http.clear()

    def _ask(self, call: Callable[[], T], what: str) -> T:
        try:
            return call()
        except Exception as error:
            self._raise(error, what)

    def _raise(self, error: Exception, what: str) -> NoReturn:
        where = f"the store at {self._endpoint}"
        if isinstance(error, StoreError | StoreUnavailableError):
            raise error
        if isinstance(error, S3Error):
            message = f"{where} refused {what}: {error.code}: {error.message}"
            match classify(error.response.status, error.code or ""):
                case Answer.MISCONFIGURED:
                    raise StoreMisconfiguredError(f"{message} (bucket {self.bucket!r})") from error
                case Answer.UNAVAILABLE | Answer.CONFLICT:
                    raise StoreUnavailableError(message) from error
                case Answer.ABSENT:
                    raise StoreError(f"{where} has no {what} in bucket {self.bucket!r}") from error
                case _:
                    raise StoreRejectedError(message) from error
        if isinstance(error, ServerError):
            raise StoreUnavailableError(f"{where} answered {error.status_code} for {what}") from error
        if isinstance(error, InvalidResponseError | urllib3.exceptions.HTTPError | OSError):
            raise StoreUnavailableError(f"{where} does not answer: {error}") from error
        if isinstance(error, ValueError):
            raise StoreRejectedError(f"{where}: {what} cannot be stored: {error}") from error
        raise error


def _credentials(settings: StoreSettings) -> Provider:
    if settings.access_key is not None:
        secret = settings.secret_key.get_secret_value() if settings.secret_key else ""
        return StaticProvider(settings.access_key, secret)
    return ChainedProvider([EnvAWSProvider(), EnvMinioProvider(), IamAwsProvider()])
