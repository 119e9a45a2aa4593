"""``zimage demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zimage_stream.cli.context import config_of
from zimage_stream.cli.printing import console


def demo(
    context: typer.Context,
    configured: Annotated[
        bool, typer.Option("--configured", help="Use the Kafka and the store of the settings.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("zimage-demo"),
) -> None:
    """Make 24 pictures and bury one poisonous record; needs nothing but this package.

    Example: zimage demo --out /tmp/demo
    """
    from zimage_stream.cli.demo.run import run_demo

    raise typer.Exit(run_demo(config_of(context), configured, out, console(stderr=True)))
