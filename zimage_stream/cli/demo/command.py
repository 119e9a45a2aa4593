"""The command ``zimage demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zimage_stream.cli.context import config_of
from zimage_stream.cli.printing import console


def demo(
    context: typer.Context,
    configured: Annotated[
        bool, typer.Option("--configured", help="Use Kafka and the store from the settings.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("zimage-demo"),
) -> None:
    """Generate 24 images, and a dead letter from one poison record; needs only this package.

    Example: zimage demo --out /tmp/demo
    """
    from zimage_stream.cli.demo.run import run_demo

    raise typer.Exit(run_demo(config_of(context), configured, out, console(stderr=True)))
