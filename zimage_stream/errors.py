"""The exceptions that callers distinguish.

::

    ZImageError
    ├── SettingsError              a setting is wrong; the message names it, its value and what it accepts
    ├── WireError                  a record's bytes are not a valid event (code UNDECODABLE)
    │   └── UnknownSchemaError     the record names an unknown schema (code UNKNOWN_SCHEMA)
    ├── RequestError               a request breaks a rule (code INVALID_REQUEST); states field, rule, value
    │   └── UnsupportedSizeError   the size is not supported here (code UNSUPPORTED_SIZE)
    ├── EngineError                the engine failed to generate an image, but can continue
    │   ├── OutOfMemoryError       the batch does not fit into memory (code OUT_OF_MEMORY)
    │   └── ContextLostError       the device is unusable until the process restarts
    ├── GenerationCancelledError   the images are no longer wanted
    ├── StoreError
    │   ├── IdConflictError        the key has an image of a different request (code ID_CONFLICT)
    │   ├── StoreRejectedError     the store refuses this one object (code STORE_REJECTED)
    │   └── StoreMisconfiguredError  bucket, credentials or folder are wrong; an operator must act
    ├── UnavailableError           a dependency does not answer; waiting may help
    │   ├── BrokerUnavailableError
    │   ├── RegistryUnavailableError
    │   └── StoreUnavailableError
    ├── TopicMissingError          a topic does not exist, or these credentials may not see it
    ├── SchemaMissingError         a schema of ours is not registered, and ``registry.auto_register`` is off
    ├── SubmitError                the brokers did not accept a request, or its cancellation
    └── ResultTimeoutError         no terminal event within the requested time

Modules define further subclasses of :class:`ZImageError`, such as for a file that cannot be read or a replay
that was refused. Their messages are complete: they can be shown to a user as they are.

The *consequence* of an error for a request (retry, dead letter, pause) is decided in one place,
``zimage_consumers.image_worker.stages.verdict``; the classes only state what happened.
"""

from __future__ import annotations

from collections.abc import Iterable

from zimage_stream.escaping import shortened


class ZImageError(Exception):
    """Base of every error raised by this project."""


class SettingsError(ZImageError):
    """A setting is wrong. The message has one line per problem: variable, value, and what is accepted."""


class WireError(ZImageError):
    """The bytes of a record are not a valid event."""


class UnknownSchemaError(WireError):
    """The record names a schema id or fingerprint that neither the registry nor this version knows."""


class RequestError(ZImageError):
    """A request breaks a rule.

    Attributes:
        field: the field of :class:`~zimage_stream.PromptRequest` at fault.
        rule: what the field accepts, as a phrase.
        got: the value, shortened for display.
    """

    def __init__(self, field: str, rule: str, got: object) -> None:
        self.field = field
        self.rule = rule
        self.got = short_repr(got)
        super().__init__(f"{field}: got {self.got}, takes {rule}")


class UnsupportedSizeError(RequestError):
    """Width and height are valid, but this deployment does not generate images of that size."""


class EngineError(ZImageError):
    """The engine failed to generate an image; the process and the device remain usable."""


class GenerationCancelledError(ZImageError):
    """The engine stopped between two steps, because the images are no longer wanted."""


class OutOfMemoryError(EngineError):
    """The batch does not fit into the device's memory."""


class ContextLostError(EngineError):
    """The device context is corrupted; only a new process can use the device again."""


class StoreError(ZImageError):
    """The image store answered with an error."""


class IdConflictError(StoreError):
    """The tenant has already used this request id for an image with different parameters."""


class StoreRejectedError(StoreError):
    """The store refuses this one object; others may be accepted."""


class StoreMisconfiguredError(StoreError):
    """No object can be stored until an operator acts: no such bucket, access refused, disk full."""


class UnavailableError(ZImageError):
    """A dependency does not answer. No request is at fault, and waiting may help."""


class BrokerUnavailableError(UnavailableError):
    """Kafka does not answer."""


class RegistryUnavailableError(UnavailableError):
    """The schema registry does not answer."""


class StoreUnavailableError(UnavailableError):
    """The image store does not answer."""


class SubmitError(ZImageError):
    """The brokers did not accept a request, or its cancellation.

    Attributes:
        request_id: the request that was not accepted, or not cancelled.
    """

    def __init__(self, request_id: str, reason: str, what: str = "request") -> None:
        self.request_id = request_id
        super().__init__(f"{what} {request_id} was not accepted: {reason}")


class TopicMissingError(ZImageError):
    """The topic does not exist, or these credentials may not see it."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"topic {topic}: {reason}. To create it: zimage topics create")


class SchemaMissingError(ZImageError):
    """A schema that we write with is not registered, and ``registry.auto_register`` is off."""


class ResultTimeoutError(ZImageError):
    """No terminal event arrived within the requested time.

    Attributes:
        missing: ids of the requests without a result.
    """

    def __init__(self, missing: Iterable[str], timeout_s: float) -> None:
        self.missing = tuple(missing)
        examples = ", ".join(self.missing[:3]) + (" …" if len(self.missing) > 3 else "")
        super().__init__(f"no result within {timeout_s:g} s for {len(self.missing)} request(s): {examples}")


def short_repr(value: object, limit: int = 100) -> str:
    """``repr`` of a value, shortened in the middle so that a 10 kB field does not fill a log line."""
    return shortened(repr(value), limit)
