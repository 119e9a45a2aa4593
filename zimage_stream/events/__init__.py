"""Events on the topics: the dataclasses, the rules for their fields, and their Avro encoding."""

from zimage_stream.events.cancellation import Cancellation
from zimage_stream.events.image_result import (
    Code,
    Failure,
    ImageResult,
    Source,
    Status,
    StoredImage,
    Timing,
)
from zimage_stream.events.progress import Progress, ProgressStage
from zimage_stream.events.prompt_request import PromptRequest, new_request_id

__all__ = [
    "Cancellation",
    "Code",
    "Failure",
    "ImageResult",
    "Progress",
    "ProgressStage",
    "PromptRequest",
    "Source",
    "Status",
    "StoredImage",
    "Timing",
    "new_request_id",
]
