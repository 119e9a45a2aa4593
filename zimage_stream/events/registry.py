"""The schema registry: ids to schemas and back, each asked for once."""

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
from zimage_stream.events.untrusted import RefusedSchemaError, Writer, admit
from zimage_stream.proxies import through_proxy
from zimage_stream.settings import RegistrySettings

TIMEOUT_S = 3.0
"""The longest silence within an answer."""
ANSWERED_WITHIN_S = 8.0
"""The longest answer to one question, however it drips."""
UNKNOWN_FOR_S = 5.0
"""How long an id stays unknown without asking again: producers may register it at any time."""
ASK_AGAIN_S, LONGEST_WAIT_S = 1.0, 10.0
"""Between two questions that were not answered."""
GIVE_UP_TRIES, GIVE_UP_S = 4, 60.0
"""An id asked for so often, over so long, while the registry answered others, is taken for unknown."""
MAX_REFERENCES = 32
MAX_ASKED = 16
"""Ids that are asked for at once."""
MAX_IDS = 10_000
"""Kept of each kind. Who invents more has the first ones asked for again."""
_NOT_FOUND = 404
_OF_EVERY_ID = frozenset((401, 403, 407, 408, 425, 429))
"""Refusals that say nothing of the id: of credentials, of too many questions."""


_T = TypeVar("_T")


class SchemaUnavailableError(RegistryUnavailableError):
    """The registry answers, and does not for this one id. Only records that name it have to wait."""


class SchemaPendingError(RegistryUnavailableError):
    """The registry has been asked for this id, and its answer is awaited."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A schema as it was registered, and the texts it refers to, each after what it refers to itself."""

    schema: RegistrySchema
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Silent:
    """No answer for an id; ``others`` says whether other questions are answered."""

    error: RegistryUnavailableError
    others: bool


@dataclass(frozen=True, slots=True)
class _Question:
    """What was asked of an id, and when."""

    at: float
    answer: Future[_Found | WireError | _Silent]


@dataclass(slots=True)
class _Failing:
    """An id for which the registry has no answer, while it has for others."""

    since: float
    tries: int = 0
    ask_at: float = 0.0
    reason: str = ""


class Registry:
    """A Confluent-compatible registry. Thread-safe.

    What is cached needs no registry: a worker that has seen an id goes on when the registry is down.

    Args:
        clock: monotonic seconds.
        patience_s: how long :meth:`schema` waits for an answer. A later one is for a later call. Of several
            ids that are asked for at the same time only the first is waited for.
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
        self._url = settings.url + through_proxy(settings.url)
        self._auto_register = settings.auto_register
        self._config = config
        self._client = AsyncSchemaRegistryClient(config)
        self._loop = LoopThread("zimage-registry", self._hang_up)
        self._clock = clock
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._asked: dict[int, _Question] = {}
        self._schemas: dict[int, Writer] = {}
        self._unknown: dict[int, tuple[float, WireError]] = {}
        self._failing: dict[int, _Failing] = {}
        self._ask_at = float("-inf")
        self._reason = ""
        self._ids: dict[tuple[str, bytes], int] = {}
        forks.follow(self)

    def after_fork(self) -> None:
        """A child asks over connections of its own; what is cached stays."""
        self._lock = threading.Lock()
        self._asked = {}
        forks.leave(self._client)
        self._client = AsyncSchemaRegistryClient(self._config)

    def schema(self, schema_id: int) -> Writer:
        """The writer schema of an id.

        Raises:
            UnknownSchemaError: the registry does not have it, or it is no Avro schema.
            RefusedSchemaError: what is decoded with it could take any time.
            SchemaUnavailableError: the registry answers others and not this one.
            SchemaPendingError: it was asked for, and the answer takes longer than ``patience_s``.
            RegistryUnavailableError: nobody can say now. Where the registry was asked lately, this and
                SchemaUnavailableError come at once.
        """
        with self._lock:
            if schema_id in self._schemas:
                return self._schemas[schema_id]
            question, patience_s = self._question(schema_id)
        try:
            answer = question.answer.result(None if math.isinf(patience_s) else patience_s)
        except TimeoutError:
            raise SchemaPendingError(f"schema id {schema_id} is asked for at {self._url}") from None
        with self._lock:
            if self._asked.get(schema_id) is question:
                del self._asked[schema_id]
                return self._learn(schema_id, question, answer)
        # Somebody else has learned it meanwhile.
        return self.schema(schema_id)

    def schema_id(self, topic: str, schema: Schema) -> int:
        """The id under which a schema is registered for a topic's values (TopicNameStrategy).

        Raises:
            SchemaMissingError: it is not registered, and ``registry.auto_register`` is off.
            RegistryUnavailableError: nobody can say now.
        """
        subject = f"{topic}-value"
        key = (subject, schema.fingerprint)
        if key not in self._ids:
            self._ids[key] = self._loop.begin(lambda: self._look_up(subject, schema)).result()
        return self._ids[key]

    def close(self) -> None:
        """Release the connections; what is cached stays."""
        self._loop.close()

    def _question(self, schema_id: int) -> tuple[_Question, float]:
        """What is asked of an id, and how many seconds to wait for the answer.

        Raises what was found out a moment ago.
        """
        known = self._asked.get(schema_id)
        at = self._clock()
        if known is None:
            self._raise_known(schema_id, at)
        others = sum(not question.answer.done() for question in self._asked.values())
        if known is None and others >= MAX_ASKED:
            raise SchemaPendingError(f"schema id {schema_id} is asked for when {others} others are answered")
        question = known or _Question(at, self._loop.begin(lambda: self._fetch(schema_id)))
        _keep(self._asked, schema_id, question)
        waits = math.isinf(self._patience_s) or (known is None and not others)
        return question, self._patience_s if waits else 0.0

    def _raise_known(self, schema_id: int, at: float) -> None:
        until, error = self._unknown.get(schema_id, (float("-inf"), WireError()))
        if at < until:
            raise type(error)(*error.args)
        if at < self._ask_at:
            raise RegistryUnavailableError(self._reason)
        failing = self._failing.get(schema_id)
        if failing is not None and at < failing.ask_at:
            raise SchemaUnavailableError(failing.reason)

    def _learn(self, schema_id: int, question: _Question, answer: _Found | WireError | _Silent) -> Writer:
        """Keep what an answer says, and return or raise it.

        The schema is parsed here and not where the answer came in: one that kills its reader then does so on
        behalf of the record that names it.
        """
        if isinstance(answer, _Silent):
            raise self._unanswered(schema_id, answer, question.at) from answer.error
        try:
            if isinstance(answer, WireError):
                raise answer
            writer = _writer(schema_id, answer)
        except WireError as error:
            _keep(self._unknown, schema_id, (self._clock() + UNKNOWN_FOR_S, error))
            raise
        self._failing.pop(schema_id, None)
        _keep(self._schemas, schema_id, writer)
        return writer

    def _unanswered(self, schema_id: int, silent: _Silent, asked_at: float) -> ZImageError:
        """What to raise where the registry had no answer for an id: is it the registry, or the id?"""
        at = self._clock()
        if not silent.others:
            # While nobody is answered, nothing is held against an id. Half of the time is for other things.
            self._failing.pop(schema_id, None)
            self._ask_at, self._reason = at + max(ASK_AGAIN_S, at - asked_at), str(silent.error)
            return RegistryUnavailableError(self._reason)
        failing = self._failing.get(schema_id) or _Failing(asked_at)
        _keep(self._failing, schema_id, failing)
        failing.tries += 1
        failing.ask_at = at + min(LONGEST_WAIT_S, ASK_AGAIN_S * 2 ** (failing.tries - 1))
        failing.reason = f"schema id {schema_id}: {silent.error}; other questions it answers"
        if failing.tries >= GIVE_UP_TRIES and at - failing.since >= GIVE_UP_S:
            del self._failing[schema_id]
            given_up = UnknownSchemaError(
                f"{failing.reason}. It was asked {failing.tries} times in {at - failing.since:.0f} s"
            )
            _keep(self._unknown, schema_id, (at + UNKNOWN_FOR_S, given_up))
            return given_up
        return SchemaUnavailableError(failing.reason)

    # -- on the loop: what is asked, and nothing that has to be kept

    async def _hang_up(self) -> None:
        async with self._client:  # whose end closes its connections
            pass

    async def _fetch(self, schema_id: int) -> _Found | WireError | _Silent:
        name = f"schema id {schema_id}"
        texts: dict[tuple[str, int], str] = {}
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                found = await self._answer_for(name, lambda: self._client.get_schema(schema_id))
                await self._collect(name, found, texts)
        except WireError as error:
            return error
        except RegistryUnavailableError as error:
            return _Silent(error, await self._answers())
        except TimeoutError:
            return _Silent(self._too_slow(), await self._answers())
        except Exception as error:
            # An answer of an odd shape. It must end the question, or nobody could ask again.
            what = f"{type(error).__name__}: {error}"[:300]
            return UnknownSchemaError(f"what the registry says of {name} cannot be read: {what}")
        return _Found(found, tuple(texts.values()))

    async def _collect(self, name: str, schema: RegistrySchema, texts: dict[tuple[str, int], str]) -> None:
        """The texts that a schema refers to, each after what it refers to itself."""
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
            texts[subject, version] = ""  # so that a circle ends
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
                raise UnknownSchemaError(f"{what} is not to be had: {error}") from error
            raise

    async def _answers(self) -> bool:
        """Whether the registry answers a question that has nothing to do with any schema."""
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
            raise RegistryUnavailableError(f"the registry at {self._url} gave no id for subject {subject}")
        return int(found.schema_id)

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND:
                raise UnknownSchemaError(shortened(str(error), 300)) from error
            said = shortened(str(error.error_message), 300)  # it may be a page
            raise RegistryUnavailableError(
                f"the registry at {self._url} answered {error.http_status_code}: {said}"
            ) from error
        except Exception as error:
            # The library lets its HTTP client's own errors through, and which client that is has changed.
            what = str(error) or type(error).__name__
            raise RegistryUnavailableError(f"the registry at {self._url} does not answer: {what}") from error

    def _too_slow(self) -> RegistryUnavailableError:
        return RegistryUnavailableError(
            f"the registry at {self._url} had not ended its answer after {ANSWERED_WITHIN_S:g} s"
        )


def _writer(schema_id: int, found: _Found) -> Writer:
    """What an id's records are decoded with. Raises UnknownSchemaError or RefusedSchemaError."""
    name = f"schema id {schema_id}"
    kind = found.schema.schema_type or "AVRO"
    if kind != "AVRO":
        kind = shortened(kind, NAME_CHARACTERS)
        raise UnknownSchemaError(f"{name} is a {kind} schema; records are in Avro")
    try:
        writer = admit(found.schema.schema_str or "", found.references)
    except RefusedSchemaError as error:
        raise RefusedSchemaError(f"{name} is refused: {error}") from error
    except Exception as error:
        # Whatever the parser stumbles over, it is the text.
        what = f"{type(error).__name__}: {error}"[:300]
        raise UnknownSchemaError(f"{name} is no Avro schema: {what}") from error
    # What is ours to the letter is decoded as ours: faster, and at no risk.
    ours = (each.parsed for versions in published().values() for each in versions)
    return next((Writer(parsed) for parsed in ours if parsed == writer.parsed), writer)


def _is_refusal(error: RegistryUnavailableError) -> bool:
    """Whether the registry has said that the question is wrong, and not that it cannot answer."""
    cause = error.__cause__
    if not isinstance(cause, SchemaRegistryError):
        return False
    return 400 <= cause.http_status_code < 500 and cause.http_status_code not in _OF_EVERY_ID


def _keep(kept: dict[int, _T], schema_id: int, what: _T) -> None:
    """Remember this of an id, the oldest being forgotten beyond so many."""
    if schema_id not in kept and len(kept) >= MAX_IDS:
        del kept[next(iter(kept))]
    kept[schema_id] = what
