"""Access to the global options, which precede the command's name."""

from __future__ import annotations

from pathlib import Path

import typer

from zimage_stream.settings import Settings, load_settings


def config_of(context: typer.Context) -> Path | None:
    """Return the file that ``--config`` names, if any."""
    config: Path | None = (context.obj or {}).get("config")
    return config


def settings_of(context: typer.Context) -> Settings:
    """Load the effective settings.

    Raises:
        SettingsError: the settings cannot be read.
    """
    return load_settings(config_of(context))
