"""Events on the topics: the dataclasses, the rules for their fields, and their Avro encoding."""

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
