"""The schema registry: ids to schemas and back, each asked for once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka.schema_registry import Schema as RegistrySchema
from confluent_kafka.schema_registry import SchemaRegistryClient, SchemaRegistryError
from fastavro.schema import SchemaParseException, UnknownType, parse_schema

from zimage_stream.errors import RegistryUnavailableError, UnknownSchemaError, ZImageError
from zimage_stream.events.schemas import Schema
from zimage_stream.proxies import through_proxy
from zimage_stream.settings import RegistrySettings

TIMEOUT_S = 3.0
UNKNOWN_FOR_S = 5.0
"""How long an id stays unknown without asking again: producers may register it at any time."""
_NOT_FOUND = 404


class SchemaMissingError(ZImageError):
    """A schema that we write with is not registered, and registering it by ourselves is off."""


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
        self._client = SchemaRegistryClient(config)
        self._clock = clock
        self._lock = threading.Lock()
        self._schemas: dict[int, Any] = {}
        self._unknown: dict[int, float] = {}
        self._ids: dict[tuple[str, bytes], int] = {}

    def schema(self, schema_id: int) -> Any:
        """The parsed writer schema of an id.

        Raises:
            UnknownSchemaError: the registry does not have it, or it is no Avro schema.
            RegistryUnavailableError: nobody can say now.
        """
        with self._lock:
            if schema_id in self._schemas:
                return self._schemas[schema_id]
            if self._clock() < self._unknown.get(schema_id, float("-inf")):
                raise UnknownSchemaError(f"schema id {schema_id} is not in the registry")
            try:
                found = self._ask(lambda: self._client.get_schema(schema_id))
                parsed = parse_schema(json.loads(found.schema_str or ""))
            except (UnknownSchemaError, ValueError, SchemaParseException, UnknownType) as error:
                self._unknown[schema_id] = self._clock() + UNKNOWN_FOR_S
                if isinstance(error, UnknownSchemaError):
                    raise UnknownSchemaError(f"schema id {schema_id} is not in the registry") from error
                raise UnknownSchemaError(f"schema id {schema_id} is no Avro schema: {error}") from error
            self._schemas[schema_id] = parsed
            return parsed

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
            raise RegistryUnavailableError(
                f"the registry at {self._url} answered {error.http_status_code}: {error.error_message}"
            ) from error
        except Exception as error:
            # The library lets its HTTP client's own errors through, and which client that is has changed.
            raise RegistryUnavailableError(f"the registry at {self._url} does not answer: {error}") from error
