"""Events on the topics: the dataclasses, the rules they keep and their Avro wire forms."""

from zimage_stream.events.image_result import (
    Code,
    Failure,
    ImageResult,
    Source,
    Status,
    StoredImage,
    Timing,
)
from zimage_stream.events.prompt_request import PromptRequest, new_request_id

__all__ = [
    "Code",
    "Failure",
    "ImageResult",
    "PromptRequest",
    "Source",
    "Status",
    "StoredImage",
    "Timing",
    "new_request_id",
]
