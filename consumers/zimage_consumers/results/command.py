"""The ``zimage results`` command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from zimage_consumers.results.follow import ResultFilter, follow
from zimage_stream.cli.context import settings_of
from zimage_stream.cli.printing import print_result
from zimage_stream.cli.running import RunningLines, live_lines, progress_as_line
from zimage_stream.cli.terminal import print_line
from zimage_stream.client.saving import Saver
from zimage_stream.events.codec import create_codec
from zimage_stream.events.image_result import ImageResult, Status
from zimage_stream.events.progress import Progress
from zimage_stream.kafka.progress import ProgressReader
from zimage_stream.kafka.reader import ResultReader
from zimage_stream.settings import Settings
from zimage_stream.stores import create_store


def results(
    context: typer.Context,
    follow_: Annotated[
        bool, typer.Option("--follow", "-f", help="Show new results as they arrive, until stopped.")
    ] = False,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="With --follow: show earlier results first.")
    ] = False,
    id_: Annotated[
        list[str] | None, typer.Option("--id", help="With these request ids; --follow ends with the last.")
    ] = None,
    batch: Annotated[list[str] | None, typer.Option(help="From these batches.")] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="From these tenants.")] = None,
    status: Annotated[
        list[Status] | None, typer.Option(metavar="STATUS", help="SUCCEEDED, FAILED, …", case_sensitive=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save the images here, with results.csv and index.html."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Stop after this many seconds.")
    ] = None,
    progress: Annotated[
        bool, typer.Option("--progress", help="With --follow: show on stderr what is being generated.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Show the results of requests: all in the topic or, with --follow, new ones.

    Options that select can be repeated; a result must match every kind given.

    Example: zimage results --batch cats --status FAILED
    """
    if progress and not follow_:
        raise typer.BadParameter("this requires --follow", param_hint="--progress")
    settings = settings_of(context)
    wanted = ResultFilter.of(id_, batch, tenant, status)
    # A request selected by its id may have ended long before.
    earlier = from_beginning or not follow_ or bool(id_)
    found = 0
    with _saver(settings, out) as saver, _lines(progress) as lines:
        for event in _read(settings, wanted, earlier, follow_, timeout, progress):
            if isinstance(event, Progress):
                _show(event, lines)
                continue
            found += 1
            if lines is not None:
                lines.ended(event.source)
            print_result(event, json=json)
            if saver is not None:
                saver.save(event)
    if found == 0 and not follow_:
        print_line("there are no such results", err=True)
    missed = bool(id_) and found == 0
    raise typer.Exit(1 if missed or (saver and saver.failed) else 0)


@contextmanager
def _saver(settings: Settings, out: Path | None) -> Iterator[Saver | None]:
    """A saver for the folder, if one is given. At the end it reports what could not be saved."""
    if out is None:
        yield None
        return
    with closing(create_store(settings.store)) as store, Saver(store, out, "Results") as saver:
        yield saver
    for problem in saver.problems:
        print_line(f"not saved: {problem}", err=True)


@contextmanager
def _lines(progress: bool) -> Iterator[RunningLines | None]:
    """The lines of what is being generated, if they are asked for and there is a terminal."""
    live = live_lines()
    if not progress or live.disable:
        yield None
        return
    with RunningLines(live) as lines:
        yield lines


def _show(event: Progress, lines: RunningLines | None) -> None:
    if lines is None:
        print_line(progress_as_line(event), err=True)
    else:
        lines.note(event, event.request_id)


def _read(
    settings: Settings, wanted: ResultFilter, earlier: bool, on: bool, timeout: float | None, progress: bool
) -> Iterator[ImageResult | Progress]:
    topics = settings.topics
    with ExitStack() as stack:
        codec = stack.enter_context(create_codec(settings.registry))
        reader = stack.enter_context(ResultReader(settings.kafka, topics.results, codec, patient=False))
        running = None
        if progress:
            running = stack.enter_context(ProgressReader(settings.kafka, topics.progress, codec))
            if not running.reads:
                print_line(f"topic {topics.progress} cannot be read, so no progress is shown", err=True)
        reader.topic.start(None if earlier else reader.topic.end_offsets(), growing=on)
        yield from follow(reader, wanted, until_end=not on, timeout_s=timeout, progress=running)
