"""The schema registry: ids to schemas and back, each asked for once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from confluent_kafka.schema_registry import Schema as RegistrySchema
from confluent_kafka.schema_registry import SchemaRegistryClient, SchemaRegistryError

from zimage_stream import forks
from zimage_stream.errors import RegistryUnavailableError, UnknownSchemaError, WireError, ZImageError
from zimage_stream.escaping import shortened
from zimage_stream.events.schemas import Schema, published
from zimage_stream.events.untrusted import RefusedSchemaError, Writer, admit
from zimage_stream.proxies import through_proxy
from zimage_stream.settings import RegistrySettings

TIMEOUT_S = 3.0
UNKNOWN_FOR_S = 5.0
"""How long an id stays unknown without asking again: producers may register it at any time."""
ASK_AGAIN_S, LONGEST_WAIT_S = 1.0, 10.0
"""Between two questions that were not answered."""
GIVE_UP_TRIES, GIVE_UP_S = 4, 60.0
"""An id asked for so often, over so long, while the registry answered others, is taken for unknown."""
MAX_REFERENCES = 32
MAX_IDS = 10_000
"""Kept of each kind. Who invents more has the first ones asked for again."""
_NOT_FOUND = 404
_OF_EVERY_ID = frozenset((401, 403, 407, 408, 425, 429))
"""Refusals that say nothing of the id: of credentials, of too many questions."""


_T = TypeVar("_T")


class SchemaMissingError(ZImageError):
    """A schema that we write with is not registered, and registering it by ourselves is off."""


class SchemaUnavailableError(RegistryUnavailableError):
    """The registry answers, and does not for this one id. Only records that name it have to wait."""


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
    """

    def __init__(self, settings: RegistrySettings, clock: Callable[[], float] = time.monotonic) -> None:
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
        self._client = SchemaRegistryClient(config)
        self._clock = clock
        self._lock = threading.Lock()
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
        forks.leave(self._client)
        self._client = SchemaRegistryClient(self._config)

    def schema(self, schema_id: int) -> Writer:
        """The writer schema of an id.

        Raises:
            UnknownSchemaError: the registry does not have it, or it is no Avro schema.
            RefusedSchemaError: what is decoded with it could take any time.
            SchemaUnavailableError: the registry answers others and not this one.
            RegistryUnavailableError: nobody can say now. Both come at once where it was asked lately.
        """
        with self._lock:
            if schema_id in self._schemas:
                return self._schemas[schema_id]
            self._raise_known(schema_id)
            started = self._clock()
            try:
                writer = self._fetch(schema_id)
            except WireError as error:
                _keep(self._unknown, schema_id, (self._clock() + UNKNOWN_FOR_S, error))
                raise
            except RegistryUnavailableError as error:
                raise self._unanswered(schema_id, error, started) from error
            self._failing.pop(schema_id, None)
            _keep(self._schemas, schema_id, writer)
            return writer

    def schema_id(self, topic: str, schema: Schema) -> int:
        """The id under which a schema is registered for a topic's values (TopicNameStrategy).

        Raises:
            SchemaMissingError: it is not registered, and ``registry.auto_register`` is off.
            RegistryUnavailableError: nobody can say now.
        """
        subject = f"{topic}-value"
        key = (subject, schema.fingerprint)
        with self._lock:
            if key not in self._ids:
                self._ids[key] = self._look_up(subject, schema)
            return self._ids[key]

    def close(self) -> None:
        """Release the connections; what is cached stays."""
        self._client.close()

    def _raise_known(self, schema_id: int) -> None:
        """Raise what was found out a moment ago."""
        at = self._clock()
        until, error = self._unknown.get(schema_id, (float("-inf"), WireError()))
        if at < until:
            raise type(error)(*error.args)
        if at < self._ask_at:
            raise RegistryUnavailableError(self._reason)
        failing = self._failing.get(schema_id)
        if failing is not None and at < failing.ask_at:
            raise SchemaUnavailableError(failing.reason)

    def _fetch(self, schema_id: int) -> Writer:
        name = f"schema id {schema_id}"
        found = self._answer_for(name, lambda: self._client.get_schema(schema_id))
        kind = found.schema_type or "AVRO"
        if kind != "AVRO":
            raise UnknownSchemaError(f"{name} is a {kind} schema; records are in Avro")
        texts: dict[tuple[str, int], str] = {}
        self._collect(name, found, texts)
        try:
            writer = admit(found.schema_str or "", texts.values())
        except RefusedSchemaError as error:
            raise RefusedSchemaError(f"{name} is refused: {error}") from error
        except Exception as error:
            # Whatever the parser stumbles over, it is the text.
            what = f"{type(error).__name__}: {error}"[:300]
            raise UnknownSchemaError(f"{name} is no Avro schema: {what}") from error
        # What is ours to the letter is decoded as ours: faster, and at no risk.
        ours = (each.parsed for versions in published().values() for each in versions)
        return next((Writer(parsed) for parsed in ours if parsed == writer.parsed), writer)

    def _collect(self, name: str, schema: RegistrySchema, texts: dict[tuple[str, int], str]) -> None:
        """The texts that a schema refers to, each after what it refers to itself."""
        for each in schema.references or ():
            subject, version = str(each.subject), int(each.version or 0)
            if (subject, version) in texts:
                continue
            if len(texts) >= MAX_REFERENCES:
                raise RefusedSchemaError(f"{name} refers to more than {MAX_REFERENCES} schemas")
            wanted = f"version {version} of subject {subject}, to which {name} refers,"
            found = self._answer_for(wanted, partial(self._client.get_version, subject, version)).schema
            texts[subject, version] = ""  # so that a circle ends
            self._collect(name, found, texts)
            del texts[subject, version]
            texts[subject, version] = found.schema_str or ""

    def _answer_for(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return self._ask(call)
        except UnknownSchemaError as error:
            raise UnknownSchemaError(f"{what} is not in the registry") from error
        except RegistryUnavailableError as error:
            if _is_refusal(error):
                raise UnknownSchemaError(f"{what} is not to be had: {error}") from error
            raise

    def _unanswered(self, schema_id: int, error: RegistryUnavailableError, started: float) -> ZImageError:
        """What to raise where the registry had no answer for an id: is it the registry, or the id?"""
        answers = self._answers()
        at = self._clock()
        if not answers:
            # While nobody is answered, nothing is held against an id. Half of the time is for other things.
            self._failing.pop(schema_id, None)
            self._ask_at, self._reason = at + max(ASK_AGAIN_S, at - started), str(error)
            return error
        failing = self._failing.get(schema_id) or _Failing(started)
        _keep(self._failing, schema_id, failing)
        failing.tries += 1
        failing.ask_at = at + min(LONGEST_WAIT_S, ASK_AGAIN_S * 2 ** (failing.tries - 1))
        failing.reason = f"schema id {schema_id}: {error}; other questions it answers"
        if failing.tries >= GIVE_UP_TRIES and at - failing.since >= GIVE_UP_S:
            del self._failing[schema_id]
            given_up = UnknownSchemaError(
                f"{failing.reason}. It was asked {failing.tries} times in {at - failing.since:.0f} s"
            )
            _keep(self._unknown, schema_id, (at + UNKNOWN_FOR_S, given_up))
            return given_up
        return SchemaUnavailableError(failing.reason)

    def _answers(self) -> bool:
        """Whether the registry answers a question that has nothing to do with any schema."""
        try:
            self._ask(self._client.get_schema_types)
        except UnknownSchemaError:
            return True
        except RegistryUnavailableError as error:
            return _is_refusal(error)
        return True

    def _look_up(self, subject: str, schema: Schema) -> int:
        wanted = RegistrySchema(schema.text, "AVRO")
        if self._auto_register:
            return int(self._ask(lambda: self._client.register_schema(subject, wanted)))
        try:
            found = self._ask(lambda: self._client.lookup_schema(subject, wanted))
        except UnknownSchemaError as error:
            raise SchemaMissingError(
                f"{schema.name} version {schema.version} is not registered under subject {subject}; register "
                f"schemas/{schema.name}.v{schema.version}.avsc there, or set registry.auto_register"
            ) from error
        if found.schema_id is None:
            raise RegistryUnavailableError(f"the registry at {self._url} gave no id for subject {subject}")
        return int(found.schema_id)

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND:
                raise UnknownSchemaError(str(error)) from error
            said = shortened(str(error.error_message), 300)  # it may be a page
            raise RegistryUnavailableError(
                f"the registry at {self._url} answered {error.http_status_code}: {said}"
            ) from error
        except Exception as error:
            # The library lets its HTTP client's own errors through, and which client that is has changed.
            raise RegistryUnavailableError(f"the registry at {self._url} does not answer: {error}") from error


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
