"""``zimage worker``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from zimage_stream.settings import load_settings
from zimage_stream.telemetry.logs import configure


def worker(
    context: typer.Context,
    devices: Annotated[
        str, typer.Option(help="GPUs to use: all, a list such as 0,2, or cpu, cpu:2 to run without one.")
    ] = "all",
    supervise: Annotated[
        bool, typer.Option(help="Start one process per device and restart what dies; else run here.")
    ] = True,
    parent: Annotated[int | None, typer.Option(hidden=True, help="Process id of the supervisor.")] = None,
) -> None:
    """Generate pictures for requests, one process per GPU, until stopped.

    The first SIGTERM or Ctrl-C finishes what runs and commits; the second ends at once.

    Example: zimage worker --devices 0,1
    """
    from zimage_consumers.image_worker.process import run_worker, stop_on_signals
    from zimage_consumers.image_worker.supervisor import Supervisor, count_gpus, devices_of, die_with

    config: Path | None = (context.obj or {}).get("config")
    settings = load_settings(config)
    if parent is not None:
        die_with(parent)
    if not supervise:
        slot = settings.slot(settings.engine.device)
        raise typer.Exit(run_worker(settings, slot, lambda worker, _: stop_on_signals(worker)))
    configure(settings.telemetry, slot="supervisor")
    # A simulated engine uses no device, so any number of workers may run on any machine.
    names = devices_of(devices, count_gpus()) if settings.engine.kind == "zimage" else None
    chosen = names if names is not None else devices_of(devices if devices != "all" else "cpu", 0)
    arguments = [sys.executable, "-m", "zimage_stream"]
    if config is not None:
        arguments += ["--config", str(config)]
    raise typer.Exit(Supervisor(settings, chosen, [*arguments, "worker", "--no-supervise"]).run())
