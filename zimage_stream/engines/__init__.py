"""Engines, which generate images from specs."""

from __future__ import annotations

from zimage_stream.engines.base import Engine, ImageSpec
from zimage_stream.errors import SettingsError
from zimage_stream.settings import EngineSettings


def create_engine(settings: EngineSettings) -> Engine:
    """Create the engine that the settings name, without loading it.

    Raises:
        SettingsError: a dependency is not installed, or a setting is not supported here.
    """
    if settings.kind == "simulated":
        from zimage_stream.engines.simulated import SimulatedEngine

        return SimulatedEngine.from_settings(settings)
    try:
        from zimage_stream.engines.zimage import ZImageEngine
    except ImportError as error:
        raise SettingsError(
            f"ZIMAGE_ENGINE__KIND: got 'zimage', which cannot be imported: {error}; "
            "pip install 'zimage-stream[worker]'"
        ) from error
    return ZImageEngine(settings)


__all__ = ["Engine", "ImageSpec", "create_engine"]
