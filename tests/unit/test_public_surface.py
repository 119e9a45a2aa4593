from __future__ import annotations

import subprocess
import sys

import pytest

import zimage_stream

PUBLIC = {
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
}

HEAVY = {"torch", "diffusers", "transformers", "accelerate", "numpy", "zimage_consumers", "zimage_producers"}


def test_the_exported_names() -> None:
    assert set(zimage_stream.__all__) == PUBLIC
    assert set(dir(zimage_stream)) == PUBLIC
    for name in PUBLIC:
        assert getattr(zimage_stream, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="PromptClint"):
        zimage_stream.PromptClint  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import zimage_stream",
        "from zimage_stream import *",
        "import zimage_producers.produce.command",
        "import zimage_consumers.results.command",
        "import zimage_consumers.image_worker.command",
        "import zimage_stream.cli.main",
    ],
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    """A producer's installation has no torch, and a help text must not wait for it."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    own = {name for name in HEAVY if f"import {name}." in statement}
    assert not (HEAVY - own) & set(loaded)


def test_the_events_come_without_a_client() -> None:
    """Code that uses events over its own transport needs neither Kafka nor Avro."""
    code = "import sys\nfrom zimage_stream import ImageResult, PromptRequest\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"confluent_kafka", "fastavro", "pydantic", "minio", "PIL"} & set(loaded.stdout.split())
