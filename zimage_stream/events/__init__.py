"""Events on the topics: the dataclasses, the rules they keep and their Avro wire forms."""

from zimage_stream.events.codec import Codec
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
from zimage_stream.events.registry import Registry

__all__ = [
    "Code",
    "Codec",
    "Failure",
    "ImageResult",
    "PromptRequest",
    "Registry",
    "Source",
    "Status",
    "StoredImage",
    "Timing",
    "new_request_id",
]
