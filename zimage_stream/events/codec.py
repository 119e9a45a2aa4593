"""Encoding and decoding of events, in the two framings that the topics carry."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import fastavro
from fastavro.read import SchemaResolutionError

from zimage_stream.errors import UnknownSchemaError, WireError
from zimage_stream.events.cancellation import Cancellation
from zimage_stream.events.conform import conform
from zimage_stream.events.image_result import Failure, ImageResult, Source, Status, StoredImage, Timing
from zimage_stream.events.progress import Progress, ProgressStage
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.registry import Registry
from zimage_stream.events.schemas import (
    CANCELLATION,
    IMAGE_RESULT,
    PROGRESS,
    PROMPT_REQUEST,
    by_fingerprint,
    current,
)
from zimage_stream.events.untrusted import MAX_STEPS, ExactReader, WriterSchema
from zimage_stream.settings import RegistrySettings

CONFLUENT_V0 = b"\x00"
SINGLE_OBJECT = b"\xc3\x01"

MAX_EVENT_BYTES = 4 << 20
"""Largest record value that is decoded, in bytes. The broker's limit applies to compressed batches, so it
does not bound the decompressed size."""

_ID = struct.Struct(">I")
_FINGERPRINT_BYTES = 8
_NAMES = {
    kind: tuple(field.name for field in fields(kind))
    for kind in (PromptRequest, ImageResult, StoredImage, Failure, Timing, Source, Cancellation, Progress)
}


class Codec:
    """Reads Confluent V0 and Avro single-object framing; writes V0 with a registry, otherwise single-object.

    An event of any published version is read as the current one. Thread-safe.
    """

    def __init__(self, registry: Registry | None = None) -> None:
        self._registry = registry

    def __enter__(self) -> Codec:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the registry's connections."""
        if self._registry is not None:
            self._registry.close()

    def prepare_results(self, topic: str) -> None:
        """Fetch what :meth:`encode_result` needs, so that later calls do not depend on the registry.

        Raises:
            RegistryUnavailableError, SchemaMissingError: the schema's id is unavailable.
        """
        if self._registry is not None:
            self._registry.schema_id(topic, current(IMAGE_RESULT))

    def encode_request(self, request: PromptRequest, topic: str) -> bytes:
        """Encode a request as a record's value.

        Raises:
            RegistryUnavailableError, SchemaMissingError: the schema's id is unavailable.
        """
        return self._encode(PROMPT_REQUEST, _fields(request), topic)

    def decode_request(self, data: bytes | None) -> PromptRequest:
        """Decode a request from a record's value, without checking it against the rules.

        Raises:
            WireError: the value is not a request.
            UnknownSchemaError: neither the registry nor this version knows its schema.
            RegistryUnavailableError: the registry does not answer.
        """
        return PromptRequest(**self._decode(PROMPT_REQUEST, data))

    def encode_result(self, result: ImageResult, topic: str) -> bytes:
        """Encode a result as a record's value. Raises as :meth:`encode_request`."""
        record = _fields(result)
        for name in ("image", "error", "timing", "source"):
            record[name] = record[name] and _fields(record[name])
        return self._encode(IMAGE_RESULT, record, topic)

    def decode_result(self, data: bytes | None) -> ImageResult:
        """Decode a result from a record's value. Raises as :meth:`decode_request`."""
        record = self._decode(IMAGE_RESULT, data)
        image, error = record["image"], record["error"]
        record |= {
            "status": Status(record["status"]),
            "image": image and StoredImage(**image),
            "error": error and Failure(**error),
            "timing": Timing(**record["timing"]),
            "source": Source(**record["source"]),
        }
        return ImageResult(**record)

    def encode_cancellation(self, cancellation: Cancellation, topic: str) -> bytes:
        """Encode a cancellation as a record's value. Raises as :meth:`encode_request`."""
        record = _fields(cancellation)
        return self._encode(CANCELLATION, record | {"source": _fields(cancellation.source)}, topic)

    def decode_cancellation(self, data: bytes | None) -> Cancellation:
        """Decode a cancellation from a record's value. Raises as :meth:`decode_request`."""
        record = self._decode(CANCELLATION, data)
        return Cancellation(**record | {"source": Source(**record["source"])})

    def encode_progress(self, progress: Progress, topic: str) -> bytes:
        """Encode progress as a record's value. Raises as :meth:`encode_request`."""
        record = _fields(progress)
        return self._encode(PROGRESS, record | {"source": _fields(progress.source)}, topic)

    def decode_progress(self, data: bytes | None) -> Progress:
        """Decode progress from a record's value. Raises as :meth:`decode_request`."""
        record = self._decode(PROGRESS, data)
        return Progress(
            **record | {"source": Source(**record["source"]), "stage": ProgressStage(record["stage"])}
        )

    def _encode(self, name: str, record: Mapping[str, Any], topic: str) -> bytes:
        schema = current(name)
        out = io.BytesIO()
        if self._registry is None:
            out.write(SINGLE_OBJECT + schema.fingerprint)
        else:
            out.write(CONFLUENT_V0 + _ID.pack(self._registry.schema_id(topic, schema)))
        fastavro.schemaless_writer(out, schema.parsed, record)
        return out.getvalue()

    def _decode(self, name: str, data: bytes | None) -> dict[str, Any]:
        if not data:
            raise WireError("the record has no value" if data is None else "the record's value is empty")
        if len(data) > MAX_EVENT_BYTES:
            raise WireError(f"it has {len(data):,} bytes; at most {MAX_EVENT_BYTES:,} are decoded")
        writer, body = self._writer_schema(data)
        schema = writer.parsed
        if not isinstance(schema, dict) or schema.get("name") != name:
            found = schema.get("name") if isinstance(schema, dict) else schema
            raise WireError(f"the record holds {str(found)[:200]}, not {name}")
        if writer.cost is not None and writer.cost.steps(len(body)) > MAX_STEPS:
            raise WireError(
                f"decoding {len(body):,} bytes with its schema could take "
                f"{writer.cost.steps(len(body)):,} steps; at most {MAX_STEPS:,} are allowed"
            )
        reader = io.BytesIO(body) if writer.cost is None else ExactReader(body)
        today = current(name).parsed
        try:
            decoded = fastavro.schemaless_reader(reader, schema, None if schema is today else today)
        except SchemaResolutionError as error:
            raise WireError(f"its schema cannot be read as the current {name}: {_brief(error)}") from error
        except Exception as error:
            # On damaged bytes the decoder raises almost anything: EOF, index, value, type or date errors.
            raise WireError(f"it does not decode as {name}: {_brief(error)}") from error
        left = len(body) - reader.tell()
        if left:
            raise WireError(f"{left} extra bytes follow the {name}")
        if not isinstance(decoded, dict):
            raise WireError(f"it does not decode as {name}")
        # An event written with the current schema already has its types.
        event: dict[str, Any] = decoded if schema is today else conform(decoded, today)
        return event

    def _writer_schema(self, data: bytes) -> tuple[WriterSchema, bytes]:
        if data.startswith(SINGLE_OBJECT):
            body = len(SINGLE_OBJECT) + _FINGERPRINT_BYTES
            if len(data) < body:
                raise WireError(f"the record ends within its schema's fingerprint ({len(data)} bytes)")
            mark = data[len(SINGLE_OBJECT) : body]
            schema = by_fingerprint().get(mark)
            if schema is None:
                raise UnknownSchemaError(
                    f"no published schema has the fingerprint {mark.hex()}; if a newer producer wrote the "
                    f"record, upgrade this reader"
                )
            return WriterSchema(schema.parsed), data[body:]
        if data.startswith(CONFLUENT_V0):
            body = len(CONFLUENT_V0) + _ID.size
            if len(data) < body:
                raise WireError(f"the record ends within its schema's id ({len(data)} bytes)")
            (schema_id,) = _ID.unpack(data[1:body])
            if self._registry is None:
                raise UnknownSchemaError(
                    f"it names schema id {schema_id}, but no registry is configured: set registry.url"
                )
            return self._registry.schema(schema_id), data[body:]
        raise WireError(
            f"it starts with {data[:2].hex(' ')}, which is neither Confluent framing (00) nor Avro "
            f"single-object framing (c3 01)"
        )


def create_codec(settings: RegistrySettings, patience_s: float = math.inf) -> Codec:
    """Create a codec, with a registry if the settings name one.

    Args:
        patience_s: see :class:`Registry`.
    """
    return Codec(Registry(settings, patience_s=patience_s) if settings.url else None)


def schema_mark(data: bytes | None) -> bytes:
    """Return the bytes by which a record names its schema, whether or not that schema is known. Pure."""
    data = data or b""
    length = len(SINGLE_OBJECT) + _FINGERPRINT_BYTES if data.startswith(SINGLE_OBJECT) else 1 + _ID.size
    return data[:length]


def _fields(event: Any) -> dict[str, Any]:
    names = _NAMES[type(event)]
    return {name: getattr(event, name) for name in names}


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
