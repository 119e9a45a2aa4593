"""What a refusal by an S3 store means, decided from its status and code alone."""

from __future__ import annotations

from enum import Enum, auto

_OPERATOR = frozenset(
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
        # A store without conditional writes says so; it would overwrite pictures.
        "NotImplemented",
        "PermanentRedirect",
        "QuotaExceeded",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "XMinioAdminBucketQuotaExceeded",
        "XMinioStorageFull",
    )
)
_PASSING = frozenset(("InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown"))
_RACING = frozenset(("ConditionalRequestConflict", "OperationAborted"))


class Answer(Enum):
    """What a refusal means.

    Attributes:
        UNAVAILABLE: nobody's fault; later it may work.
        MISCONFIGURED: no object is taken until an operator acts.
        REJECTED: this object, or this request, is refused.
        TAKEN: the key holds an object.
        RACING: another write of the key is under way.
        ABSENT: the key holds nothing.
    """

    UNAVAILABLE = auto()
    MISCONFIGURED = auto()
    REJECTED = auto()
    TAKEN = auto()
    RACING = auto()
    ABSENT = auto()


def classify(status: int, code: str) -> Answer:
    """The meaning of an error response.

    Args:
        status: of HTTP.
        code: of S3, empty where the response has none.
    """
    if code in _OPERATOR or status in (401, 403, 507):
        return Answer.MISCONFIGURED
    if status == 412:
        return Answer.TAKEN
    if code in _RACING:
        return Answer.RACING
    if status >= 500 or status == 429 or code in _PASSING:
        return Answer.UNAVAILABLE
    if status == 404:
        return Answer.ABSENT
    return Answer.REJECTED
