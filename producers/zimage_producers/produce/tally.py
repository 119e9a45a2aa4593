"""The progress of a run for its user: a live line on stderr, and a summary at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from zimage_producers.produce.item import Item
from zimage_stream.cli.printing import age, print_json, print_result, result_as_line
from zimage_stream.cli.running import RunningLines, live_lines
from zimage_stream.cli.terminal import print_line
from zimage_stream.client.saving import Saver
from zimage_stream.errors import ZImageError
from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.progress import Progress

_REFRESH_S = 0.2


class Tally:
    """Counts, prints and saves what a run reports. A context manager.

    Args:
        wait: whether the run waits for results.
        json: print each accepted request (with ``wait`` each result) as a JSON object on stdout.
        saver: saves the results; ``None`` if they are not saved.
        clock: monotonic time, in seconds.
    """

    def __init__(
        self,
        *,
        wait: bool,
        json: bool,
        saver: Saver | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wait = wait
        self._json = json
        self._saver = saver
        self._clock = clock
        self._began = clock()
        self._shown = 0.0
        self._accepted = self._refused = self._succeeded = self._unsuccessful = 0
        self._total: int | None = None
        self._total_is_exact = False
        self._first_answer_at: float | None = None
        self._live = live_lines()
        self._task = self._live.add_task("", total=None)
        self._running = RunningLines(self._live)

    def __enter__(self) -> Tally:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    @property
    def all_succeeded(self) -> bool:
        """Whether nothing was refused and nothing failed."""
        return not self._refused and not self._unsuccessful and not (self._saver and self._saver.failed)

    def refused(self, line: int, error: ZImageError) -> None:
        self._refused += 1
        print_line(f"line {line}: {error}", err=True)
        self._show()

    def accepted(self, item: Item) -> None:
        self._accepted += 1
        if self._json and not self._wait:
            print_json({"request_id": item.request.request_id, "line": item.line})
        self._show()

    @property
    def shows_running(self) -> bool:
        """Whether there is a terminal that shows what is being generated."""
        return not self._live.disable

    def running(self, item: Item, event: Progress) -> None:
        self._running.note(event, item.name or item.request.prompt)

    def answered(self, item: Item, result: ImageResult) -> None:
        self._running.ended(result.source)
        if self._first_answer_at is None:
            self._first_answer_at = self._clock()
        if result.succeeded:
            self._succeeded += 1
        else:
            self._unsuccessful += 1
            print_line(f"line {item.line}: {result_as_line(result)}", err=True)
        if self._saver is not None:
            self._saver.save(result, item.name, item.request.prompt)
        if self._json:
            print_result(result, json=True)
        self._show()

    def summary(self) -> str:
        """Return the numbers of accepted, succeeded and failed requests, the time, and images per second."""
        elapsed = max(self._clock() - self._began, 1e-9)
        failed = self._refused + self._unsuccessful
        parts = [f"accepted {self._accepted:,}"]
        if self._wait:
            parts.append(f"succeeded {self._succeeded:,}")
        parts += [f"failed {failed:,}", f"{elapsed:.1f} s"]
        if self._wait:
            parts.append(f"{self._succeeded / elapsed:.2f} images/s")
        return ", ".join(parts)

    def expect(self, total: int, *, exact: bool) -> None:
        """Set the number of rows, which is an estimate until the last row has been read."""
        self._total, self._total_is_exact = total, exact

    def _show(self) -> None:
        at = self._clock()
        if at - self._shown > _REFRESH_S:
            self._shown = at
            self._live.update(
                self._task, description=self.progress(), completed=self._done, total=self._total
            )

    @property
    def _done(self) -> int:
        ended = self._succeeded + self._unsuccessful if self._wait else self._accepted
        return ended + self._refused

    def progress(self) -> str:
        """Return the progress: done and total, accepted, failed, images per second, time left."""
        at = self._clock()
        total = "" if self._total is None else f" of {'' if self._total_is_exact else '~'}{self._total:,}"
        parts = [f"{self._done:,}{total} done"]
        if self._wait:
            parts.append(f"{self._accepted:,} accepted")
        parts.append(f"{self._refused + self._unsuccessful:,} failed")
        # Before the first result, workers may have been idle or busy with other clients' requests.
        since = self._first_answer_at if self._wait else self._began
        rate = self._done / max(at - since, _REFRESH_S) if since is not None else 0.0
        if self._wait and rate:
            parts.append(f"{rate:.1f} images/s")
        if self._total is not None and rate:
            parts.append(f"{age(timedelta(seconds=max(0, self._total - self._done) / rate))} left")
        return ", ".join(parts)
