"""The exceptions that callers tell apart.

::

    ZImageError
    ├── SettingsError              a setting is wrong; names the variable, what it got, what it takes
    ├── WireError                  bytes on a topic are not an event of ours (code UNDECODABLE)
    │   └── UnknownSchemaError     they name a schema nobody here knows (code UNKNOWN_SCHEMA)
    ├── RequestError               a request breaks a rule (code INVALID_REQUEST); names field, rule, value
    │   └── UnsupportedSizeError   its size cannot be made here (code UNSUPPORTED_SIZE)
    ├── EngineError                the engine could not make a picture, and survives it
    │   ├── OutOfMemoryError       the batch does not fit (code OUT_OF_MEMORY)
    │   └── ContextLostError       the device is unusable until the process restarts
    ├── GenerationCancelledError   nobody wants the pictures any more
    ├── StoreError
    │   ├── IdConflictError        the key holds a picture of another request (code ID_CONFLICT)
    │   ├── StoreRejectedError     the store refuses this one object (code STORE_REJECTED)
    │   └── StoreMisconfiguredError  bucket, credentials or folder are wrong; an operator must act
    ├── UnavailableError           something we depend on does not answer; waiting may help
    │   ├── BrokerUnavailableError
    │   ├── RegistryUnavailableError
    │   └── StoreUnavailableError
    ├── TopicMissingError          a topic is not there, or these credentials may not see it
    ├── SchemaMissingError         what we write with is not registered, and ``registry.auto_register`` is off
    ├── SubmitError                the broker did not take a request
    └── ResultTimeoutError         no terminal event within the time asked for

Modules add others of their own below :class:`ZImageError`, each of which says all that a person needs in
its message: a file that cannot be read, a replay that was refused.

What an error *means* for a request (retry, dead letter, pause) is decided in one place,
``zimage_consumers.image_worker.stages.verdict``; the classes only say what happened.
"""

from __future__ import annotations

from collections.abc import Iterable

from zimage_stream.escaping import shortened


class ZImageError(Exception):
    """Base of every error raised by this project."""


class SettingsError(ZImageError):
    """A setting is wrong. The message has one line a problem: variable, what it got, what it takes."""


class WireError(ZImageError):
    """The bytes of a record are not an event of ours."""


class UnknownSchemaError(WireError):
    """The record names a schema id or fingerprint that neither the registry nor this version knows."""


class RequestError(ZImageError):
    """A request breaks a rule.

    Attributes:
        field: the field of :class:`~zimage_stream.PromptRequest` at fault.
        rule: what the field takes, as a phrase.
        got: what it held, shortened for display.
    """

    def __init__(self, field: str, rule: str, got: object) -> None:
        self.field = field
        self.rule = rule
        self.got = shorten(got)
        super().__init__(f"{field}: got {self.got}, takes {rule}")


class UnsupportedSizeError(RequestError):
    """Width and height are well formed, but this deployment does not make pictures of that size."""


class EngineError(ZImageError):
    """The engine failed to make a picture; the process and the device survive."""


class GenerationCancelledError(ZImageError):
    """The engine stopped between two steps, since it was told that nobody wants the pictures any more."""


class OutOfMemoryError(EngineError):
    """The batch does not fit into the device's memory."""


class ContextLostError(EngineError):
    """The device context is poisoned; only a new process can use the device again."""


class StoreError(ZImageError):
    """The image store answered, and the answer is no."""


class IdConflictError(StoreError):
    """The tenant has used this request id before, for a picture with other parameters."""


class StoreRejectedError(StoreError):
    """The store refuses this one object; others may pass."""


class StoreMisconfiguredError(StoreError):
    """No object can be stored until an operator acts: no such bucket, access refused, disk full."""


class UnavailableError(ZImageError):
    """Something we depend on does not answer. No request is to blame, and waiting may help."""


class BrokerUnavailableError(UnavailableError):
    """Kafka does not answer."""


class RegistryUnavailableError(UnavailableError):
    """The schema registry does not answer."""


class StoreUnavailableError(UnavailableError):
    """The image store does not answer."""


class SubmitError(ZImageError):
    """The broker did not take a request.

    Attributes:
        request_id: the request that was not accepted.
    """

    def __init__(self, request_id: str, reason: str) -> None:
        self.request_id = request_id
        super().__init__(f"request {request_id} was not accepted: {reason}")


class TopicMissingError(ZImageError):
    """The topic is not there, or these credentials may not see it."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"topic {topic}: {reason}. To make it: zimage topics create")


class SchemaMissingError(ZImageError):
    """A schema that we write with is not registered, and registering it by ourselves is off."""


class ResultTimeoutError(ZImageError):
    """No terminal event came within the time asked for.

    Attributes:
        missing: ids of the requests still without a result.
    """

    def __init__(self, missing: Iterable[str], timeout_s: float) -> None:
        self.missing = tuple(missing)
        some = ", ".join(self.missing[:3]) + (" …" if len(self.missing) > 3 else "")
        super().__init__(f"no result within {timeout_s:g} s for {len(self.missing)} request(s): {some}")


def shorten(value: object, limit: int = 100) -> str:
    """``repr`` of a value, cut in the middle so that a 10 kB field does not fill a log line."""
    return shortened(repr(value), limit)
