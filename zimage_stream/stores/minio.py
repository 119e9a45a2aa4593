"""MinIO, or any other S3 store with conditional writes."""

from __future__ import annotations

import io
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar
from xml.etree.ElementTree import ParseError

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.credentials.providers import (
    ChainedProvider,
    EnvAWSProvider,
    EnvMinioProvider,
    IamAwsProvider,
    Provider,
    StaticProvider,
)
from minio.error import InvalidResponseError, S3Error, ServerError
from minio.helpers import check_bucket_name

from zimage_stream.errors import (
    SettingsError,
    StoreError,
    StoreMisconfiguredError,
    StoreRejectedError,
    StoreUnavailableError,
    ZImageError,
    short_repr,
)
from zimage_stream.escaping import shortened
from zimage_stream.settings import StoreSettings
from zimage_stream.stores.answers import Answer, classify
from zimage_stream.stores.base import Put, StoredObject
from zimage_stream.stores.connections import Connections, WriteOnceConnections
from zimage_stream.stores.rules import checked_key, checked_metadata

log = logging.getLogger(__name__)

LARGEST_OBJECT = 1 << 30
"""Part size of uploads, in bytes, larger than any image. minio-py sends a larger object as a multipart
upload, which carries no condition: the second writer would overwrite the first."""
ROUNDS = 5
"""Maximum number of attempts of a write that keeps colliding with other writers and removers."""

_PREFIX = "x-amz-meta-"

T = TypeVar("T")


class MinioStore:
    """Stores objects in a bucket.

    It needs permission to read and write objects, to list the bucket and to read its region. Without
    permission to remove objects, each probe leaves a few bytes behind.

    Args:
        connections: number of connections kept open, one for each thread.

    Raises:
        SettingsError: the endpoint, the bucket's name, the prefix, the keys or the certificates are invalid.
    """

    def __init__(self, settings: StoreSettings, connections: int = 4) -> None:
        self.bucket = settings.bucket
        self._settings = settings
        self._prefix = _checked_prefix(settings.prefix)
        try:
            check_bucket_name(settings.bucket)
        except ValueError as error:
            raise SettingsError(f"ZIMAGE_STORE__BUCKET: got {settings.bucket!r}; {error}") from error
        ca = settings.ssl_ca_location
        if ca is not None and not ca.is_file():
            raise SettingsError(
                f"ZIMAGE_STORE__SSL_CA_LOCATION: got {str(ca)!r}, takes an existing file of certificates"
            )
        self._credentials = _credentials(settings)
        self._http = WriteOnceConnections(connections, ca)
        self._client = self._connect(self._http)
        # A separate key for each instance: another one's probe must not make our key exist.
        self._probe_key = f".zimage-probe-{secrets.token_hex(8)}"

    def check(self) -> None:
        if not self._ask(lambda: self._client.bucket_exists(self.bucket), f"bucket {self.bucket}"):
            raise StoreMisconfiguredError(
                f"there is no bucket {self.bucket!r} at {self._settings.endpoint}; create it, for example "
                f"with 'mc mb ALIAS/{self.bucket}', or set ZIMAGE_STORE__BUCKET to another one"
            )
        self._write_probe()
        overwritten = self._write_probe().created
        self._remove_probe()
        if overwritten:
            raise StoreMisconfiguredError(
                f"the store at {self._settings.endpoint} overwrites objects: it does not support conditional "
                "writes (If-None-Match), without which an image could change after its result; use another "
                "store"
            )

    def create(self) -> None:
        if self._ask(lambda: self._client.bucket_exists(self.bucket), f"bucket {self.bucket}"):
            return
        # Creating a bucket is a PUT too, but must not carry the condition.
        http = Connections(1, self._settings.ssl_ca_location)
        try:
            self._connect(http).make_bucket(self.bucket, self._settings.region)
        except S3Error as error:
            if error.code != "BucketAlreadyOwnedByYou":
                self._raise(error, f"bucket {self.bucket}")
        except Exception as error:
            self._raise(error, f"bucket {self.bucket}")
        finally:
            http.clear()

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str]) -> Put:
        checked_key(key)
        return self._put(key, data, content_type, checked_metadata(metadata))

    def stat(self, key: str) -> StoredObject | None:
        checked_key(key)
        return self._stat(key)

    def get(self, key: str) -> bytes:
        checked_key(key)

        def read() -> bytes:
            response = self._client.get_object(self.bucket, self._prefix + key)
            try:
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

        return self._ask(read, key)

    def probe(self) -> None:
        self._write_probe()
        self._remove_probe()

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._prefix}{key}"

    def close(self) -> None:
        self._http.clear()

    def _connect(self, http: urllib3.PoolManager) -> Minio:
        settings = self._settings
        try:
            return _Client(
                settings.endpoint,
                credentials=self._credentials,
                secure=settings.secure,
                region=settings.region,
                http_client=http,
            )
        except ValueError as error:
            raise SettingsError(
                f"ZIMAGE_STORE__ENDPOINT, ZIMAGE_STORE__REGION: got {settings.endpoint!r} and "
                f"{settings.region!r}; {error}"
            ) from error

    def _put(self, key: str, data: bytes, content_type: str, metadata: dict[str, str]) -> Put:
        for _ in range(ROUNDS):
            try:
                self._client.put_object(
                    self.bucket,
                    self._prefix + key,
                    io.BytesIO(data),
                    len(data),
                    content_type=content_type,
                    # Without the prefix, minio-py would send a name such as cache-control as an HTTP header.
                    metadata={_PREFIX + name: value for name, value in metadata.items()},
                    part_size=LARGEST_OBJECT,
                )
            except S3Error as error:
                answer = classify(error.response.status, error.code or "")
                if answer is Answer.EXISTS:
                    existing = self._stat(key)
                    if existing is not None:
                        return Put(existing, created=False)
                elif answer is not Answer.RACING:
                    self._raise(error, key)
            except Exception as error:
                self._raise(error, key)
            else:
                return Put(StoredObject(key, len(data), content_type, metadata), created=True)
        raise StoreUnavailableError(f"other processes keep writing and removing {key}")

    def _stat(self, key: str) -> StoredObject | None:
        try:
            found = self._client.stat_object(self.bucket, self._prefix + key)
        except S3Error as error:
            if classify(error.response.status, error.code or "") is Answer.ABSENT:
                return None
            self._raise(error, key)
        except Exception as error:
            self._raise(error, key)
        headers = {name.lower(): value for name, value in (found.metadata or {}).items()}
        metadata = {
            name.removeprefix(_PREFIX): value for name, value in headers.items() if name.startswith(_PREFIX)
        }
        return StoredObject(key, found.size or 0, found.content_type or "", metadata)

    def _write_probe(self) -> Put:
        return self._put(self._probe_key, b"probe", "text/plain", {})

    def _remove_probe(self) -> None:
        try:
            self._client.remove_object(self.bucket, self._prefix + self._probe_key)
        except S3Error as error:
            # A worker does not need permission to remove objects; a leftover probe does no harm.
            log.debug("could not remove the probe %s from the store: %s", self._probe_key, error.code)
        except Exception as error:
            self._raise(error, self._probe_key)

    def _ask(self, call: Callable[[], T], what: str) -> T:
        try:
            return call()
        except Exception as error:
            self._raise(error, what)

    def _raise(self, error: Exception, what: str) -> NoReturn:
        where = f"the store at {self._settings.endpoint}"
        if isinstance(error, ZImageError):
            raise error
        if isinstance(error, S3Error):
            reason = shortened(f"{error.code}: {error.message}", 500)
            message = f"{where} refused {what}: {reason}"
            match classify(error.response.status, error.code or ""):
                case Answer.MISCONFIGURED:
                    raise StoreMisconfiguredError(f"{message} (bucket {self.bucket!r})") from error
                case Answer.UNAVAILABLE | Answer.RACING:
                    raise StoreUnavailableError(message) from error
                case Answer.ABSENT:
                    raise StoreError(f"{where} has no {what} in bucket {self.bucket!r}") from error
                case _:
                    raise StoreRejectedError(message) from error
        if isinstance(error, ServerError):
            raise StoreUnavailableError(f"{where} answered {error.status_code} for {what}") from error
        if isinstance(error, urllib3.exceptions.HTTPError | OSError):
            raise StoreUnavailableError(f"{where} does not answer: {error}") from error
        if isinstance(error, InvalidResponseError | ParseError | ValueError):
            # The answer came from a gateway in front of a store that is down, or from another kind of server.
            reason = short_repr(str(error), 200)
            raise StoreUnavailableError(f"{where} does not answer like an S3 store: {reason}") from error
        raise error


class _Client(Minio):
    """A minio-py client that does not hash a body whose metadata already contain its hash.

    minio-py hashes each body in order to sign it. Here the stated hash is signed instead, and the store
    checks it. If a later minio-py calls this method differently, it falls back to hashing.
    """

    def _build_headers(
        self, host: str, headers: Any = None, body: bytes | None = None, creds: Credentials | None = None
    ) -> Any:
        stated = (headers or {}).get(_PREFIX + "sha256")
        if not body or stated is None or creds is None:
            return super()._build_headers(host, headers, body, creds)
        built, date = super()._build_headers(host, headers, None, creds)
        built["Content-Length"] = str(len(body))
        built["x-amz-content-sha256"] = stated
        return built, date


class _EnvironmentCredentials(Provider):
    """Credentials from environment variables or the instance's role, with our own error messages."""

    def __init__(self) -> None:
        # If nothing answers at the address of instance roles, minio-py's default client waits indefinitely.
        roles = IamAwsProvider(http_client=Connections(1))
        self._chain = ChainedProvider([EnvAWSProvider(), EnvMinioProvider(), roles])

    def retrieve(self) -> Credentials:
        try:
            found = self._chain.retrieve()
        except (ValueError, KeyError, OSError, urllib3.exceptions.HTTPError) as error:
            raise StoreMisconfiguredError(
                "there are no credentials for the store: set ZIMAGE_STORE__ACCESS_KEY and "
                f"ZIMAGE_STORE__SECRET_KEY, or the AWS_* or MINIO_* variables ({error})"
            ) from error
        # Otherwise the store's misleading answer would be that the signature does not match.
        if any(key != key.strip() for key in (found.access_key, found.secret_key)):
            raise StoreMisconfiguredError(
                "the store's access key or secret key in the AWS_* or MINIO_* variables begins or ends with "
                "white space, such as the line break of a file; remove it"
            )
        return found


def _credentials(settings: StoreSettings) -> Provider:
    if not settings.access_key and settings.secret_key is None:
        return _EnvironmentCredentials()
    if not settings.access_key:
        raise SettingsError("ZIMAGE_STORE__ACCESS_KEY: it is required with ZIMAGE_STORE__SECRET_KEY")
    secret = settings.secret_key.get_secret_value() if settings.secret_key else ""
    if not secret:
        raise SettingsError("ZIMAGE_STORE__SECRET_KEY: it is required with ZIMAGE_STORE__ACCESS_KEY")
    return StaticProvider(settings.access_key, secret)


def _checked_prefix(prefix: str) -> str:
    stripped = prefix.strip("/")
    if not stripped:
        return ""
    try:
        checked_key(stripped)
    except StoreRejectedError as error:
        raise SettingsError(f"ZIMAGE_STORE__PREFIX: got {prefix!r}; {error}") from error
    return f"{stripped}/"
