"""``zimage worker``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from zimage_stream.cli import interrupt
from zimage_stream.cli.context import config_of
from zimage_stream.settings import load_settings
from zimage_stream.telemetry.logs import configure


def worker(
    context: typer.Context,
    devices: Annotated[
        str, typer.Option(help="GPUs to use: all, a list such as 0,2, or cpu or cpu:2 to run without one.")
    ] = "all",
    supervise: Annotated[
        bool, typer.Option(help="Start one process per device and restart any that dies; else run here.")
    ] = True,
    parent: Annotated[int | None, typer.Option(hidden=True, help="Process id of the supervisor.")] = None,
    report: Annotated[
        int | None, typer.Option(hidden=True, help="File descriptor to report port and progress to.")
    ] = None,
) -> None:
    """Generate images for requests, one process per GPU, until stopped.

    The first SIGTERM or Ctrl-C finishes what is running and commits; the second
    ends at once. Exit codes in addition to the usual ones: 70 the device is sick,
    71 its context is lost, 72 another process uses the slot, 73 a batch hung,
    74 the device's memory leaks.

    Example: zimage worker --devices 0,1
    """
    # Until a worker runs there is nothing to finish, and an import of torch does not take interrupts well.
    interrupt.exit_at_once()
    from zimage_consumers.image_worker.host.process import StopSignals, run_worker
    from zimage_consumers.image_worker.host.report import Reporter
    from zimage_consumers.image_worker.host.supervisor import Supervisor, count_gpus, devices_of, die_with
    from zimage_consumers.image_worker.worker import Worker

    config = config_of(context)
    settings = load_settings(config)
    if parent is not None:
        die_with(parent)
    if not supervise:
        slot = settings.slot(settings.engine.device)
        signals, reporter = StopSignals(), Reporter(report)

        def started(worker: Worker, port: int) -> None:
            signals.watch(worker)
            reporter.listening(port)

        code = run_worker(settings, slot, started=started, loaded=reporter.loaded)
        raise typer.Exit(signals.exit_code(code))
    configure(settings.telemetry, slot="supervisor")
    # A simulated engine uses no device, so any number of workers can run on any machine.
    names = devices_of(devices, count_gpus()) if settings.engine.kind == "zimage" else None
    chosen = names if names is not None else devices_of(devices if devices != "all" else "cpu", 0)
    arguments = [sys.executable, "-m", "zimage_stream"]
    if config is not None:
        arguments += ["--config", str(config)]
    raise typer.Exit(Supervisor(settings, chosen, [*arguments, "worker", "--no-supervise"]).run())
