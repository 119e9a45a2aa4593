"""The requests that are being generated, as lines that a terminal keeps up to date."""

from __future__ import annotations

import sys
from collections import OrderedDict
from types import TracebackType

from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Live

from zimage_stream.cli.printing import console
from zimage_stream.escaping import NAME_CHARACTERS, escaped, shortened
from zimage_stream.events.image_result import Source
from zimage_stream.events.progress import Progress, ProgressStage

SHOWN = 8
"""Maximum number of requests that are shown; one more line counts all of them."""
MAX_RUNNING = 200
"""Maximum number of requests that are followed; older ones are dropped."""
_ENDED = 10_000
"""Number of ended requests that are remembered: their progress may be read after their results."""
_CHARACTERS = 40


def live_lines() -> Live:
    """Create lines on stderr that are kept up to date. They are disabled unless it is a terminal."""
    shown_on = console(stderr=True)
    return Live(
        SpinnerColumn(),
        BarColumn(bar_width=16),
        TextColumn("{task.description}", markup=False),
        console=shown_on,
        transient=True,
        # A live line is useless in a pipe or log.
        disable=not shown_on.is_terminal,
        # On a terminal, other output is printed above the live line; to a pipe it must go unchanged.
        redirect_stdout=sys.stdout.isatty(),
    )


def progress_as_line(event: Progress) -> str:
    """Summarise progress in one line: stage, id, and the step."""
    step = f"  {event.step} of {event.steps}" if event.stage is ProgressStage.STEP else ""
    return f"{event.stage:<9} {shortened(event.request_id, NAME_CHARACTERS)}{step}"


def words_of(event: Progress) -> str:
    """What a request is doing, for people. Pure."""
    match event.stage:
        case ProgressStage.STEP:
            return f"step {event.step} of {event.steps}"
        case ProgressStage.GENERATED:
            return "being stored"
        case ProgressStage.RETRYING:
            return "failed, will be tried again"
        case _:
            return "being generated"


class RunningLines:
    """One line for each request that is being generated. A context manager.

    Args:
        live: where the lines are shown, below those that it has.
    """

    def __init__(self, live: Live | None = None) -> None:
        self._live = live or live_lines()
        self._running: OrderedDict[Source, TaskID] = OrderedDict()
        self._ended: OrderedDict[Source, None] = OrderedDict()
        self._count = self._live.add_task("", total=None, visible=False)

    def __enter__(self) -> RunningLines:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def note(self, event: Progress, name: str) -> None:
        """Show what a request is doing.

        Args:
            name: the request's name for people; it may be any text.
        """
        if event.source in self._ended:
            return
        text = f"{escaped(shortened(name, _CHARACTERS))}: {words_of(event)}"
        total = event.steps if event.stage in (ProgressStage.STEP, ProgressStage.GENERATED) else None
        task = self._running.get(event.source)
        if task is not None and total is None:
            # A bar that has a total cannot be without one again.
            self._live.remove_task(self._running[event.source])
            task = None
        if task is not None:
            self._live.update(task, description=text, total=total, completed=event.step)
            return
        self._running[event.source] = self._live.add_task(
            text, total=total, completed=event.step, visible=False
        )
        if len(self._running) > MAX_RUNNING:
            self._live.remove_task(self._running.popitem(last=False)[1])
        self._arrange()

    def ended(self, source: Source) -> None:
        """Remove a request that has its result."""
        self._ended[source] = None
        if len(self._ended) > _ENDED:
            self._ended.popitem(last=False)
        task = self._running.pop(source, None)
        if task is not None:
            self._live.remove_task(task)
            self._arrange()

    def _arrange(self) -> None:
        """Show the oldest requests, and how many there are."""
        for number, task in enumerate(self._running.values()):
            self._live.update(task, visible=number < SHOWN)
        count = len(self._running)
        text = f"{count} are being generated; the oldest {SHOWN}:"
        self._live.update(self._count, visible=count > SHOWN, description=text)
