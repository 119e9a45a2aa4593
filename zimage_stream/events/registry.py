"""The schema registry: maps ids to schemas and back, and caches both."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from confluent_kafka.schema_registry import AsyncSchemaRegistryClient, SchemaRegistryError
from confluent_kafka.schema_registry import Schema as RegistrySchema

from zimage_stream import forks
from zimage_stream.errors import (
    RegistryUnavailableError,
    SchemaMissingError,
    UnknownSchemaError,
    WireError,
    ZImageError,
)
from zimage_stream.escaping import NAME_CHARACTERS, shortened
from zimage_stream.events.loop import LoopThread
from zimage_stream.events.schemas import Schema, published
from zimage_stream.events.untrusted import RefusedSchemaError, WriterSchema, admit
from zimage_stream.proxies import proxy_note
from zimage_stream.settings import RegistrySettings

TIMEOUT_S = 3.0
"""Longest pause within a response, in seconds."""
ANSWERED_WITHIN_S = 8.0
"""Longest duration of a response, in seconds, even if bytes keep arriving."""
UNKNOWN_FOR_S = 5.0
"""How long an id is taken for unknown before the next query, in seconds: it may be registered at any time."""
ASK_AGAIN_S, LONGEST_WAIT_S = 1.0, 10.0
"""First and longest delay between two queries without a response, in seconds."""
GIVE_UP_TRIES, GIVE_UP_S = 4, 60.0
"""An id counts as unknown after this many failed queries over this many seconds, if others succeed."""
MAX_REFERENCES = 32
MAX_ASKED = 16
"""Maximum number of ids that are queried at the same time."""
MAX_IDS = 10_000
"""Maximum number of cached ids of each kind. Beyond it the oldest entries are dropped and queried again."""
_NOT_FOUND = 404
_CONCERN_ALL_IDS = frozenset((401, 403, 407, 408, 425, 429))
"""HTTP statuses that concern all ids: bad credentials, too many requests."""


_T = TypeVar("_T")


class SchemaUnavailableError(RegistryUnavailableError):
    """The registry answers, but not for this one id. Only records that name it have to wait."""


class SchemaPendingError(RegistryUnavailableError):
    """A query for this id is in progress."""


@dataclass(frozen=True, slots=True)
class _RegisteredSchema:
    """A registered schema and the texts of its references, each after its own references."""

    schema: RegistrySchema
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _NoResponse:
    """A query without a response; ``others`` tells whether the registry answers other queries."""

    error: RegistryUnavailableError
    others: bool


@dataclass(frozen=True, slots=True)
class _Query:
    """A query for an id and its start time."""

    at: float
    answer: Future[_RegisteredSchema | WireError | _NoResponse]


@dataclass(slots=True)
class _FailingId:
    """An id for which the registry does not answer, although it answers for others."""

    since: float
    tries: int = 0
    ask_at: float = 0.0
    reason: str = ""


class Registry:
    """A client of a Confluent-compatible registry. Thread-safe.

    Cached ids do not need the registry: a worker that has seen an id continues while the registry is down.

    Args:
        clock: monotonic time, in seconds.
        patience_s: how long :meth:`schema` waits for a response, in seconds. A response that takes longer
            serves a later call. While several ids are being queried, only the first is waited for.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = math.inf,
    ) -> None:
        if settings.url is None:
            raise ZImageError("registry.url is not set")
        config: dict[str, Any] = {"url": settings.url, "timeout": TIMEOUT_S, "max.retries": 0}
        if settings.username is not None:
            password = settings.password.get_secret_value() if settings.password else ""
            config["basic.auth.user.info"] = f"{settings.username}:{password}"
        if settings.ssl_ca_location is not None:
            config["ssl.ca.location"] = str(settings.ssl_ca_location)
        self._url = settings.url + proxy_note(settings.url)
        self._auto_register = settings.auto_register
        self._config = config
        self._client = AsyncSchemaRegistryClient(config)
        self._loop = LoopThread("zimage-registry", self._close_connections)
        self._clock = clock
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._queries: dict[int, _Query] = {}
        self._schemas: dict[int, WriterSchema] = {}
        self._unknown: dict[int, tuple[float, WireError]] = {}
        self._failing: dict[int, _FailingId] = {}
        self._ask_at = float("-inf")
        self._reason = ""
        self._ids: dict[tuple[str, bytes], int] = {}
        forks.register(self)

    def after_fork(self) -> None:
        """Use the child's own connections; the cache stays."""
        self._lock = threading.Lock()
        self._queries = {}
        forks.leak(self._client)
        self._client = AsyncSchemaRegistryClient(self._config)

    def schema(self, schema_id: int) -> WriterSchema:
        """Return the writer schema with an id.

        Raises:
            UnknownSchemaError: the registry does not have it, or it is not an Avro schema.
            RefusedSchemaError: decoding with it could take unbounded time.
            SchemaUnavailableError: the registry answers for other ids, but not for this one.
            SchemaPendingError: the response takes longer than ``patience_s``.
            RegistryUnavailableError: the registry does not answer. Shortly after a failed query, this and
                SchemaUnavailableError are raised without another query.
        """
        with self._lock:
            if schema_id in self._schemas:
                return self._schemas[schema_id]
            query, patience_s = self._query(schema_id)
        try:
            answer = query.answer.result(None if math.isinf(patience_s) else patience_s)
        except TimeoutError:
            raise SchemaPendingError(f"schema id {schema_id} is being fetched from {self._url}") from None
        with self._lock:
            if self._queries.get(schema_id) is query:
                del self._queries[schema_id]
                return self._process_answer(schema_id, query, answer)
        # Another thread has processed the response meanwhile.
        return self.schema(schema_id)

    def schema_id(self, topic: str, schema: Schema) -> int:
        """Return the id under which a schema is registered for a topic's values (TopicNameStrategy).

        Raises:
            SchemaMissingError: it is not registered, and ``registry.auto_register`` is off.
            RegistryUnavailableError: the registry does not answer.
        """
        subject = f"{topic}-value"
        key = (subject, schema.fingerprint)
        if key not in self._ids:
            self._ids[key] = self._loop.submit(lambda: self._look_up(subject, schema)).result()
        return self._ids[key]

    def close(self) -> None:
        """Release the connections; the cache stays."""
        self._loop.close()

    def _query(self, schema_id: int) -> tuple[_Query, float]:
        """Return the query for an id, started if necessary, and how many seconds to wait for its response.

        Raises the error of a recent query instead of repeating it.
        """
        known = self._queries.get(schema_id)
        at = self._clock()
        if known is None:
            self._raise_recent_error(schema_id, at)
        others = sum(not query.answer.done() for query in self._queries.values())
        if known is None and others >= MAX_ASKED:
            raise SchemaPendingError(f"schema id {schema_id} waits for {others} other queries to finish")
        query = known or _Query(at, self._loop.submit(lambda: self._fetch(schema_id)))
        _cache(self._queries, schema_id, query)
        waits = math.isinf(self._patience_s) or (known is None and not others)
        return query, self._patience_s if waits else 0.0

    def _raise_recent_error(self, schema_id: int, at: float) -> None:
        until, error = self._unknown.get(schema_id, (float("-inf"), WireError()))
        if at < until:
            raise type(error)(*error.args)
        if at < self._ask_at:
            raise RegistryUnavailableError(self._reason)
        failing = self._failing.get(schema_id)
        if failing is not None and at < failing.ask_at:
            raise SchemaUnavailableError(failing.reason)

    def _process_answer(
        self, schema_id: int, query: _Query, answer: _RegisteredSchema | WireError | _NoResponse
    ) -> WriterSchema:
        """Cache a response, then return its schema or raise its error.

        The schema is parsed here rather than on the loop's thread: if parsing kills the process, the death is
        attributed to the record that names the schema.
        """
        if isinstance(answer, _NoResponse):
            raise self._error_without_answer(schema_id, answer, query.at) from answer.error
        try:
            if isinstance(answer, WireError):
                raise answer
            writer = _writer(schema_id, answer)
        except WireError as error:
            _cache(self._unknown, schema_id, (self._clock() + UNKNOWN_FOR_S, error))
            raise
        self._failing.pop(schema_id, None)
        _cache(self._schemas, schema_id, writer)
        return writer

    def _error_without_answer(self, schema_id: int, silent: _NoResponse, asked_at: float) -> ZImageError:
        """Decide which error to raise for an unanswered query: one for this id, or for the whole registry."""
        at = self._clock()
        if not silent.others:
            # During an outage nothing counts against an id. At most half of the time is spent on queries.
            self._failing.pop(schema_id, None)
            self._ask_at, self._reason = at + max(ASK_AGAIN_S, at - asked_at), str(silent.error)
            return RegistryUnavailableError(self._reason)
        failing = self._failing.get(schema_id) or _FailingId(asked_at)
        _cache(self._failing, schema_id, failing)
        failing.tries += 1
        failing.ask_at = at + min(LONGEST_WAIT_S, ASK_AGAIN_S * 2 ** (failing.tries - 1))
        failing.reason = f"schema id {schema_id}: {silent.error}; it answers other queries"
        if failing.tries >= GIVE_UP_TRIES and at - failing.since >= GIVE_UP_S:
            del self._failing[schema_id]
            given_up = UnknownSchemaError(
                f"{failing.reason}. It was queried {failing.tries} times in {at - failing.since:.0f} s"
            )
            _cache(self._unknown, schema_id, (at + UNKNOWN_FOR_S, given_up))
            return given_up
        return SchemaUnavailableError(failing.reason)

    # -- on the loop's thread: queries only, no shared state

    async def _close_connections(self) -> None:
        async with self._client:  # leaving the context closes its connections
            pass

    async def _fetch(self, schema_id: int) -> _RegisteredSchema | WireError | _NoResponse:
        name = f"schema id {schema_id}"
        texts: dict[tuple[str, int], str] = {}
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                found = await self._answer_for(name, lambda: self._client.get_schema(schema_id))
                await self._collect(name, found, texts)
        except WireError as error:
            return error
        except RegistryUnavailableError as error:
            return _NoResponse(error, await self._is_answering())
        except TimeoutError:
            return _NoResponse(self._too_slow(), await self._is_answering())
        except Exception as error:
            # A malformed response. It must end the query, otherwise the id could never be queried again.
            what = f"{type(error).__name__}: {error}"[:300]
            return UnknownSchemaError(f"the registry's response for {name} cannot be read: {what}")
        return _RegisteredSchema(found, tuple(texts.values()))

    async def _collect(self, name: str, schema: RegistrySchema, texts: dict[tuple[str, int], str]) -> None:
        """Collect the texts of a schema's references, each after its own references."""
        for each in schema.references or ():
            subject, version = str(each.subject), int(each.version or 0)
            if (subject, version) in texts:
                continue
            if len(texts) >= MAX_REFERENCES:
                raise RefusedSchemaError(f"{name} refers to more than {MAX_REFERENCES} schemas")
            named = shortened(subject, NAME_CHARACTERS)
            wanted = f"version {version} of subject {named}, to which {name} refers,"
            answer = await self._answer_for(wanted, partial(self._client.get_version, subject, version))
            found = answer.schema
            texts[subject, version] = ""  # ends a cycle of references
            await self._collect(name, found, texts)
            del texts[subject, version]
            texts[subject, version] = found.schema_str or ""

    async def _answer_for(self, what: str, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await self._ask(call)
        except UnknownSchemaError as error:
            raise UnknownSchemaError(f"{what} is not in the registry") from error
        except RegistryUnavailableError as error:
            if _is_refusal(error):
                raise UnknownSchemaError(f"{what} is unavailable: {error}") from error
            raise

    async def _is_answering(self) -> bool:
        """Whether the registry answers a query that is independent of any schema."""
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                await self._ask(self._client.get_schema_types)
        except UnknownSchemaError:
            return True
        except RegistryUnavailableError as error:
            return _is_refusal(error)
        except TimeoutError:
            return False
        return True

    async def _look_up(self, subject: str, schema: Schema) -> int:
        wanted = RegistrySchema(schema.text, "AVRO")
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                if self._auto_register:
                    return int(await self._ask(lambda: self._client.register_schema(subject, wanted)))
                found = await self._ask(lambda: self._client.lookup_schema(subject, wanted))
        except UnknownSchemaError as error:
            raise SchemaMissingError(
                f"{schema.name} version {schema.version} is not registered under subject {subject}; register "
                f"schemas/{schema.name}.v{schema.version}.avsc there, or set registry.auto_register"
            ) from error
        except TimeoutError as error:
            raise self._too_slow() from error
        if found.schema_id is None:
            raise RegistryUnavailableError(
                f"the registry at {self._url} returned no id for subject {subject}"
            )
        return int(found.schema_id)

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND:
                raise UnknownSchemaError(shortened(str(error), 300)) from error
            message = shortened(str(error.error_message), 300)  # it may be a whole HTML page
            raise RegistryUnavailableError(
                f"the registry at {self._url} answered {error.http_status_code}: {message}"
            ) from error
        except Exception as error:
            # The library passes on the exceptions of its HTTP client, and that client changes with versions.
            what = str(error) or type(error).__name__
            raise RegistryUnavailableError(f"the registry at {self._url} does not answer: {what}") from error

    def _too_slow(self) -> RegistryUnavailableError:
        return RegistryUnavailableError(
            f"the registry at {self._url} had not finished its response after {ANSWERED_WITHIN_S:g} s"
        )


def _writer(schema_id: int, found: _RegisteredSchema) -> WriterSchema:
    """Parse a registered schema. Raises UnknownSchemaError or RefusedSchemaError."""
    name = f"schema id {schema_id}"
    kind = found.schema.schema_type or "AVRO"
    if kind != "AVRO":
        kind = shortened(kind, NAME_CHARACTERS)
        raise UnknownSchemaError(f"{name} is a {kind} schema; records must be in Avro")
    try:
        writer = admit(found.schema.schema_str or "", found.references)
    except RefusedSchemaError as error:
        raise RefusedSchemaError(f"{name} is refused: {error}") from error
    except Exception as error:
        # The parser has no base class for its errors; all of them mean that the text is invalid.
        what = f"{type(error).__name__}: {error}"[:300]
        raise UnknownSchemaError(f"{name} is not an Avro schema: {what}") from error
    # A schema identical to one of ours is treated as ours: decoding is faster, and trusted.
    ours = (each.parsed for versions in published().values() for each in versions)
    return next((WriterSchema(parsed) for parsed in ours if parsed == writer.parsed), writer)


def _is_refusal(error: RegistryUnavailableError) -> bool:
    """Whether the registry rejected the query itself, as opposed to being unable to answer it."""
    cause = error.__cause__
    if not isinstance(cause, SchemaRegistryError):
        return False
    return 400 <= cause.http_status_code < 500 and cause.http_status_code not in _CONCERN_ALL_IDS


def _cache(kept: dict[int, _T], schema_id: int, what: _T) -> None:
    """Cache a value for an id; beyond ``MAX_IDS`` entries, drop the oldest one."""
    if schema_id not in kept and len(kept) >= MAX_IDS:
        del kept[next(iter(kept))]
    kept[schema_id] = what
