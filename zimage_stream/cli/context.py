"""What the options before a command's name say."""

from __future__ import annotations

from pathlib import Path

import typer

from zimage_stream.settings import Settings, load_settings


def config_of(context: typer.Context) -> Path | None:
    """The file that ``--config`` names."""
    config: Path | None = (context.obj or {}).get("config")
    return config


def settings_of(context: typer.Context) -> Settings:
    """The settings in force.

    Raises:
        SettingsError: they cannot be read.
    """
    return load_settings(config_of(context))
