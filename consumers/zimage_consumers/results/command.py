"""The ``zimage results`` command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from zimage_consumers.results.follow import ResultFilter, follow
from zimage_stream.cli.context import settings_of
from zimage_stream.cli.printing import print_result
from zimage_stream.cli.terminal import print_line
from zimage_stream.client.saving import Saver
from zimage_stream.events.codec import create_codec
from zimage_stream.events.image_result import ImageResult, Status
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
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Show the results of requests: all in the topic or, with --follow, new ones.

    Options that select can be repeated; a result must match every kind given.

    Example: zimage results --batch cats --status FAILED
    """
    settings = settings_of(context)
    wanted = ResultFilter.of(id_, batch, tenant, status)
    # A request selected by its id may have ended long before.
    earlier = from_beginning or not follow_ or bool(id_)
    found = 0
    with _saver(settings, out) as saver:
        for result in _read(settings, wanted, earlier, follow_, timeout):
            found += 1
            print_result(result, json=json)
            if saver is not None:
                saver.save(result)
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


def _read(
    settings: Settings, wanted: ResultFilter, earlier: bool, on: bool, timeout: float | None
) -> Iterator[ImageResult]:
    with (
        create_codec(settings.registry) as codec,
        ResultReader(settings.kafka, settings.topics.results, codec, patient=False) as reader,
    ):
        reader.topic.start(None if earlier else reader.topic.end_offsets(), growing=on)
        yield from follow(reader, wanted, until_end=not on, timeout_s=timeout)
