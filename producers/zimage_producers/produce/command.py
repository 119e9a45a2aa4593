"""The command ``zimage produce``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import typer

from zimage_producers.produce import options, rows
from zimage_producers.produce.item import Item
from zimage_producers.produce.reading import Reading, open_rows
from zimage_producers.produce.row_ids import RowIds
from zimage_producers.produce.run import InvalidLine, Run
from zimage_producers.produce.tally import Tally
from zimage_stream.cli.context import settings_of
from zimage_stream.cli.printing import print_json, print_result
from zimage_stream.cli.running import RunningLines, live_lines
from zimage_stream.cli.terminal import print_line
from zimage_stream.client.prompt_client import PromptClient
from zimage_stream.client.saving import Saver
from zimage_stream.errors import RequestError, ZImageError
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.texts import time_from_text
from zimage_stream.settings import Settings
from zimage_stream.stores import create_store

_ESTIMATE_EVERY = 512
"""Number of rows between two estimates of their total, which use the bytes read so far."""


def produce(
    context: typer.Context,
    prompt: options.Prompt = None,
    *,
    file: options.File = None,
    input_format: options.InputFormat = None,
    encoding: options.Encoding = None,
    batch: options.Batch = None,
    name_by: options.NameBy = None,
    request_id: options.RequestId = None,
    tenant: options.Tenant = None,
    width: options.Width = None,
    height: options.Height = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance_scale: options.Guidance = None,
    image_format: options.ImageFormat = None,
    quality: options.Quality = None,
    priority: options.Priority = None,
    previews: options.Previews = None,
    expires_at: options.ExpiresAt = None,
    attribute: options.Attribute = None,
    wait: options.Wait = False,
    out: options.Out = None,
    timeout: options.Timeout = None,
    json: options.Json = False,
) -> None:
    """Request images: one prompt, or a file of them.

    A CSV or XLSX file names its columns in the first line: prompt, and any other
    field of a request; other columns are returned as attributes of the result.
    Options for fields apply to rows that do not set the field.

    Example: zimage produce "a lighthouse in fog" --wait --out pictures
    """
    if (prompt is None) == (file is None):
        raise typer.BadParameter("give either a prompt or --file", param_hint="PROMPT")
    fields = _without_none(
        tenant=tenant,
        width=width,
        height=height,
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        format=image_format,
        quality=quality,
        priority=priority,
        previews=previews,
        expires_at=time_from_text("expires_at", expires_at) if expires_at else None,
        attributes=_attributes(attribute or []),
    )
    settings = settings_of(context)
    job = _Job(settings, fields, wait or out is not None, out, timeout, json)
    if prompt is not None:
        if input_format or encoding or name_by:
            hint = "--input-format, --encoding, --name-by"
            raise typer.BadParameter("these require --file", param_hint=hint)
        done = job.send_one(prompt, _without_none(request_id=request_id, batch_id=batch))
    else:
        if request_id is not None:
            raise typer.BadParameter("rows of a file have their own ids", param_hint="--request-id")
        path = None if file in (None, "-") else Path(str(file))
        done = job.send_file(path, input_format, encoding, batch, name_by)
    raise typer.Exit(0 if done else 1)


def _without_none(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Job:
    settings: Settings
    fields: Mapping[str, Any]
    wait: bool
    out: Path | None
    timeout: float | None
    json: bool

    def send_one(self, prompt: str, more: Mapping[str, Any]) -> bool:
        """Send one request; return whether it was accepted and, if awaited, succeeded."""
        request = PromptRequest(**{**self.fields, **more, "prompt": prompt})
        with PromptClient(self.settings) as client, ExitStack() as stack:
            saver = self._saver(stack, request.request_id)
            client.submit(request)
            if not self.wait:
                if self.json:
                    print_json({"request_id": request.request_id})
                else:
                    print_line(request.request_id)
                return True
            try:
                _show_running(client, request, self.timeout)
                result = client.wait(request.request_id, self.timeout)
            except KeyboardInterrupt:
                print_line(err=True)
                print_line(f"to get its result: zimage results --follow --id {request.request_id}", err=True)
                raise
            print_result(result, json=self.json)
            if saver is not None:
                saver.save(result, prompt=request.prompt)
        return result.succeeded and not _report(saver)

    def send_file(
        self,
        path: Path | None,
        input_format: Literal["csv", "jsonl", "xlsx"] | None,
        encoding: str | None,
        batch: str | None,
        name_by: str | None,
    ) -> bool:
        """Send a file; return whether all of its requests were accepted and, if awaited, succeeded."""
        try:
            with ExitStack() as stack:
                reading = open_rows(stack, path, input_format, encoding, name_by)
                return self.send_many(
                    path, reading, batch or rows.batch_name(path, datetime.now(UTC)), name_by
                )
        except rows.InputError as error:
            raise typer.BadParameter(str(error), param_hint="--file") from error

    def send_many(self, path: Path | None, reading: Reading, batch: str, name_by: str | None) -> bool:
        """Send an opened input; return whether all requests were accepted and, if awaited, succeeded."""
        print_line(f"batch {batch}, read as {reading.described}", err=True)
        if reading.attributes:
            # Printed because a misspelt field would be among them.
            names = ", ".join(reading.attributes)
            print_line(f"columns that are not fields are returned as attributes: {names}", err=True)
        with PromptClient(self.settings) as client, ExitStack() as stack:
            saving = stack.enter_context(ExitStack())
            saver = self._saver(saving, batch)
            tally = stack.enter_context(Tally(wait=self.wait, json=self.json, saver=saver))
            run = Run(client, tally, self.timeout)
            stopped: list[rows.InputError] = []
            try:
                items = _items(_counting(reading, tally, stopped), batch, self.fields, name_by)
                (run.gather if self.wait else run.submit)(items)
                # Waits for the images that are still being downloaded.
                saving.close()
            except (KeyboardInterrupt, ZImageError):
                for line in ("", tally.summary(), f"to resume: {_resume_command(batch, path)}"):
                    print_line(line, err=True)
                raise
        _report(saver)
        print_line(tally.summary(), err=self.json)
        for error in stopped:
            print_line(f"{path or 'the input'}: {error}; the rest was not read", err=True)
            print_line(f"fix it; then, to resume: {_resume_command(batch, path)}", err=True)
        return tally.all_succeeded and not stopped

    def _saver(self, stack: ExitStack, title: str) -> Saver | None:
        if self.out is None:
            return None
        store = create_store(self.settings.store)
        stack.callback(store.close)
        return stack.enter_context(Saver(store, self.out, title))


def _show_running(client: PromptClient, request: PromptRequest, timeout_s: float | None) -> None:
    """Show how far a request has come, on a terminal, until it has its result."""
    live = live_lines()
    if live.disable:
        return
    with RunningLines(live) as lines:
        for event in client.progress([request.request_id], timeout=timeout_s):
            lines.note(event, request.prompt)


def _counting(reading: Reading, tally: Tally, stopped: list[rows.InputError]) -> Iterator[rows.Row]:
    """Yield the rows, and keep the tally's estimate of their number up to date.

    Args:
        stopped: receives the error that ends the rows early. The rows before it are still processed.
    """
    count = 0
    try:
        for count, row in enumerate(reading.rows, 1):
            if reading.size and count % _ESTIMATE_EVERY == 1:
                expected = round(count * reading.size / max(reading.file.tell(), 1))
                tally.expect(expected, exact=False)
            yield row
    except rows.InputError as error:
        stopped.append(error)
    tally.expect(count, exact=True)


def _items(
    read: Iterator[rows.Row], batch: str, fields: Mapping[str, Any], name_by: str | None
) -> Iterator[Item | InvalidLine]:
    with closing(RowIds(batch)) as ids:
        for row in read:
            try:
                if row.problem is not None:
                    raise rows.InputError(row.problem)
                request = rows.request_of(row, batch, ids.id_of(row), fields)
            except (RequestError, rows.InputError) as error:
                yield InvalidLine(row.line, error)
            else:
                name = row.values.get(name_by) if name_by else None
                yield Item(row.line, request, None if name is None else str(name))


def _attributes(pairs: list[str]) -> dict[str, str]:
    attributes = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--attribute")
        attributes[name] = value
    return attributes


def _report(saver: Saver | None) -> bool:
    """Print what was saved and what was not; return whether there were failures."""
    if saver is None:
        return False
    for problem in saver.problems:
        print_line(f"not saved: {problem}", err=True)
    print_line(f"{saver.saved:,} image(s) saved; to view them, open {saver.page}", err=True)
    return bool(saver.failed)


def _resume_command(batch: str, path: Path | None) -> str:
    """Return the command to resume this run."""
    words = ["zimage", *sys.argv[1:]]
    if not any(word == "--batch" or word.startswith("--batch=") for word in words):
        words += ["--batch", batch]
    return shlex.join(words) + (" (with the same input)" if path is None else "")
