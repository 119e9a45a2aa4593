from __future__ import annotations

import pytest

from zimage_stream.stores.answers import Answer, classify

TABLE = [
    (412, "PreconditionFailed", Answer.EXISTS),
    (412, "", Answer.EXISTS),
    (409, "ConditionalRequestConflict", Answer.RACING),
    (409, "OperationAborted", Answer.RACING),
    (409, "XMinioObjectExistsAsDirectory", Answer.REJECTED),
    (404, "NoSuchKey", Answer.ABSENT),
    (404, "NoSuchObject", Answer.ABSENT),
    (404, "ResourceNotFound", Answer.ABSENT),
    (404, "NoSuchBucket", Answer.MISCONFIGURED),
    (403, "AccessDenied", Answer.MISCONFIGURED),
    (403, "InvalidAccessKeyId", Answer.MISCONFIGURED),
    (403, "SignatureDoesNotMatch", Answer.MISCONFIGURED),
    (403, "RequestTimeTooSkewed", Answer.MISCONFIGURED),
    (403, "", Answer.MISCONFIGURED),
    (401, "", Answer.MISCONFIGURED),
    (400, "ExpiredToken", Answer.MISCONFIGURED),
    (400, "AuthorizationHeaderMalformed", Answer.MISCONFIGURED),
    (301, "PermanentRedirect", Answer.MISCONFIGURED),
    (501, "NotImplemented", Answer.MISCONFIGURED),
    (507, "XMinioStorageFull", Answer.MISCONFIGURED),
    (507, "", Answer.MISCONFIGURED),
    (400, "XMinioAdminBucketQuotaExceeded", Answer.MISCONFIGURED),
    (500, "InternalError", Answer.UNAVAILABLE),
    (503, "SlowDown", Answer.UNAVAILABLE),
    (503, "SlowDownWrite", Answer.UNAVAILABLE),
    (503, "XMinioServerNotInitialized", Answer.UNAVAILABLE),
    (502, "", Answer.UNAVAILABLE),
    (429, "", Answer.UNAVAILABLE),
    (400, "RequestTimeout", Answer.UNAVAILABLE),
    (400, "EntityTooLarge", Answer.REJECTED),
    (400, "InvalidArgument", Answer.REJECTED),
    (400, "XMinioInvalidObjectName", Answer.REJECTED),
    (400, "XMinioParentIsObject", Answer.REJECTED),
    (405, "MethodNotAllowed", Answer.REJECTED),
]


@pytest.mark.parametrize(("status", "code", "answer"), TABLE)
def test_an_error_response_is_classified(status: int, code: str, answer: Answer) -> None:
    assert classify(status, code) is answer
