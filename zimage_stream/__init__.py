"""Kafka stream processing for Z-Image-Turbo: prompts in, images out, exactly one result per request.

::

    from zimage_stream import PromptClient, PromptRequest

    with PromptClient() as client:
        result = client.wait(client.submit(PromptRequest(prompt="a lighthouse in fog")))

The whole public API is importable from here, except ``zimage_consumers.run_worker``, which runs a worker with
your own :class:`Engine` or :class:`ImageStore`. Everything else may change without notice.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zimage_stream.client.prompt_client import PromptClient
    from zimage_stream.client.submitting import Submitted
    from zimage_stream.engines.base import Engine, ImageSpec, PreviewingEngine, Previews, SteppingEngine
    from zimage_stream.errors import (
        BrokerUnavailableError,
        ContextLostError,
        EngineError,
        GenerationCancelledError,
        OutOfMemoryError,
        RegistryUnavailableError,
        RequestError,
        ResultTimeoutError,
        SchemaMissingError,
        SettingsError,
        StoreError,
        StoreMisconfiguredError,
        StoreRejectedError,
        StoreUnavailableError,
        SubmitError,
        TopicMissingError,
        UnavailableError,
        UnsupportedSizeError,
        WireError,
        ZImageError,
    )
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
    from zimage_stream.settings import Settings, load_settings
    from zimage_stream.stores.base import ImageStore, Put, StoredObject

    __version__: str

__all__ = [
    "BrokerUnavailableError",
    "Code",
    "ContextLostError",
    "Engine",
    "EngineError",
    "Failure",
    "GenerationCancelledError",
    "ImageResult",
    "ImageSpec",
    "ImageStore",
    "OutOfMemoryError",
    "PreviewingEngine",
    "Previews",
    "Progress",
    "ProgressStage",
    "PromptClient",
    "PromptRequest",
    "Put",
    "RegistryUnavailableError",
    "RequestError",
    "ResultTimeoutError",
    "SchemaMissingError",
    "Settings",
    "SettingsError",
    "Source",
    "Status",
    "SteppingEngine",
    "StoreError",
    "StoreMisconfiguredError",
    "StoreRejectedError",
    "StoreUnavailableError",
    "StoredImage",
    "StoredObject",
    "SubmitError",
    "Submitted",
    "Timing",
    "TopicMissingError",
    "UnavailableError",
    "UnsupportedSizeError",
    "WireError",
    "ZImageError",
    "__version__",
    "load_settings",
    "new_request_id",
]

_HOMES = {
    "PromptClient": "client.prompt_client",
    "Submitted": "client.submitting",
    "Settings": "settings",
    "load_settings": "settings",
    "PromptRequest": "events.prompt_request",
    "new_request_id": "events.prompt_request",
    **dict.fromkeys(("Progress", "ProgressStage"), "events.progress"),
    **dict.fromkeys(
        ("Engine", "ImageSpec", "PreviewingEngine", "Previews", "SteppingEngine"), "engines.base"
    ),
    **dict.fromkeys(("ImageStore", "Put", "StoredObject"), "stores.base"),
    **dict.fromkeys(
        ("Code", "Failure", "ImageResult", "Source", "Status", "StoredImage", "Timing"), "events.image_result"
    ),
}


def __getattr__(name: str) -> Any:
    # Imported at first use: importing the package for a dataclass must not load a Kafka client.
    if name == "__version__":
        from importlib.metadata import version

        return version("zimage-stream")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
