"""Classification of an S3 store's error responses, by status and code alone."""

from __future__ import annotations

from enum import Enum, auto

_MISCONFIGURED = frozenset(
    (
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InsufficientCapacity",
        "InvalidAccessKeyId",
        "InvalidBucketName",
        "InvalidToken",
        "NoSuchBucket",
        # The answer of a store without conditional writes; it would overwrite images.
        "NotImplemented",
        "PermanentRedirect",
        "QuotaExceeded",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "XMinioAdminBucketQuotaExceeded",
        "XMinioStorageFull",
    )
)
_TRANSIENT = frozenset(("InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown"))
_RACING = frozenset(("ConditionalRequestConflict", "OperationAborted"))


class Answer(Enum):
    """The meaning of an error response.

    Attributes:
        UNAVAILABLE: the store is temporarily unable to answer; a retry may succeed.
        MISCONFIGURED: the store accepts no object until an operator acts.
        REJECTED: the store refuses this object or this request.
        EXISTS: the key already has an object.
        RACING: another write to the key is in progress.
        ABSENT: the key has no object.
    """

    UNAVAILABLE = auto()
    MISCONFIGURED = auto()
    REJECTED = auto()
    EXISTS = auto()
    RACING = auto()
    ABSENT = auto()


def classify(status: int, code: str) -> Answer:
    """Classify an error response.

    Args:
        status: HTTP status.
        code: S3 error code; empty if the response has none.
    """
    if code in _MISCONFIGURED or status in (401, 403, 507):
        return Answer.MISCONFIGURED
    if status == 412:
        return Answer.EXISTS
    if code in _RACING:
        return Answer.RACING
    if status >= 500 or status == 429 or code in _TRANSIENT:
        return Answer.UNAVAILABLE
    if status == 404:
        return Answer.ABSENT
    return Answer.REJECTED
