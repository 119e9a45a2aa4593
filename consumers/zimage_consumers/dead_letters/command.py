"""The ``zimage dead-letters`` command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from zimage_consumers.dead_letters.choose import (
    LetterFilter,
    LetterGroup,
    NotReplayableError,
    request_to_send,
)
from zimage_consumers.dead_letters.letter import DeadLetter, LetterPosition
from zimage_consumers.dead_letters.notes import read_notes
from zimage_consumers.dead_letters.original import complete_letter
from zimage_consumers.dead_letters.read import read_letters
from zimage_consumers.dead_letters.release import write_releases
from zimage_consumers.dead_letters.replay import MAX_LETTERS_PER_TRANSACTION, Replay, Replayer
from zimage_consumers.dead_letters.show import details, groups_table, id_of, line_of
from zimage_consumers.image_worker.stages.verdict import DEPLOYMENT_CODES
from zimage_stream.cli.context import settings_of
from zimage_stream.cli.printing import print_json, print_table
from zimage_stream.cli.terminal import print_line
from zimage_stream.errors import RequestError
from zimage_stream.escaping import NAME_CHARACTERS, shortened
from zimage_stream.events.codec import Codec, create_codec
from zimage_stream.events.image_result import Code
from zimage_stream.events.rules import Limits, check_request
from zimage_stream.events.texts import FIELDS, field_from_text
from zimage_stream.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Requests that could not be served: list, inspect, fix and replay them.",
)

Codes = Annotated[
    list[str] | None, typer.Option("--code", help="With these codes: " + ", ".join(list(Code)[:3]) + ", …")
]
Ids = Annotated[list[str] | None, typer.Option("--id", help="With these request ids.")]
Tenants = Annotated[list[str] | None, typer.Option("--tenant", help="From these tenants.")]
At = Annotated[
    list[str] | None,
    typer.Option("--at", metavar="PARTITION:OFFSET", help="At these positions in the dead-letter topic."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most this many, oldest first.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


@app.command("list")
def list_(
    context: typer.Context,
    code: Codes = None,
    id_: Ids = None,
    tenant: Tenants = None,
    at: At = None,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Count dead letters by code or, with options that select, list each of them.

    Example: zimage dead-letters list --code INVALID_REQUEST
    """
    settings = settings_of(context)
    wanted, now = _wanted(code, id_, tenant, at), datetime.now(UTC)
    replayed = read_notes(settings)
    groups: dict[str, LetterGroup] = {}
    found = 0
    with create_codec(settings.registry) as codec:
        for letter in read_letters(settings, codec, wanted):
            found += 1
            if wanted != LetterFilter() or limit is not None:
                again = letter in replayed
                if json:
                    _print_json(letter, again)
                else:
                    print_line(line_of(letter, now, replayed=again))
            else:
                groups.setdefault(letter.code, LetterGroup.of(letter)).add(letter, letter in replayed)
            if found == limit:
                break
    if json:
        for name, group in groups.items():
            print_json({"code": name, **group.as_dict()})
    elif groups:
        print_table(groups_table(groups, now))
        print_line(err=True)
        print_line("to list each: zimage dead-letters list --code CODE", err=True)
    elif not found:
        print_line(
            "there are no such dead letters" if wanted != LetterFilter() else "there are none", err=True
        )


@app.command()
def show(
    context: typer.Context,
    which: Annotated[
        list[str], typer.Argument(metavar="ID|PARTITION:OFFSET", help="Request ids or positions.")
    ],
    raw: Annotated[bool, typer.Option("--raw", help="Write only the record's value, byte for byte.")] = False,
    json: Json = False,
) -> None:
    """Show all about a dead letter: what was sent, why it failed, and where it came from.

    Example: zimage dead-letters show 0:17
    """
    if raw and sys.stdout.isatty():
        raise typer.BadParameter(
            "the value may contain terminal control codes; write it to a file: … --raw > value",
            param_hint="--raw",
        )
    settings, now = settings_of(context), datetime.now(UTC)
    places = {place for text in which if (place := _place(text)) is not None}
    ids = frozenset(text for text in which if _place(text) is None)
    replayed = read_notes(settings)
    shown = 0
    with create_codec(settings.registry) as codec:
        for letter in read_letters(settings, codec, LetterFilter()):
            if letter.place not in places and letter.request_id not in ids:
                continue
            if raw:
                if shown:
                    raise typer.BadParameter(
                        "it has several dead letters; give one position", param_hint="--raw"
                    )
                try:
                    sys.stdout.buffer.write(complete_letter(settings.kafka, codec, letter).value or b"")
                except NotReplayableError as error:
                    print_line(str(error), err=True)
                    raise typer.Exit(1) from error
            elif json:
                _print_json(letter, letter in replayed)
            else:
                if shown:
                    print_line()
                    print_line("─" * 72)
                for line in details(letter, now, replayed=letter in replayed):
                    print_line(line)
            shown += 1
    _end_if_none(shown)


@app.command()
def export(
    context: typer.Context,
    code: Codes = None,
    id_: Ids = None,
    tenant: Tenants = None,
    at: At = None,
    limit: Limit = None,
) -> None:
    """Write dead letters as JSON Lines: request, reasons, headers, and the bytes in base64.

    Example: zimage dead-letters export > dead-letters.jsonl
    """
    settings = settings_of(context)
    replayed = read_notes(settings)
    with create_codec(settings.registry) as codec:
        letters = read_letters(settings, codec, _wanted(code, id_, tenant, at))
        for number, letter in enumerate(letters, 1):
            _print_json(letter, letter in replayed)
            if number == limit:
                break


@app.command()
def replay(
    context: typer.Context,
    code: Codes = None,
    id_: Ids = None,
    tenant: Tenants = None,
    at: At = None,
    all_: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    limit: Limit = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the request; repeatable."),
    ] = None,
    value: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Send these bytes instead; for one dead letter.")
    ] = None,
    keep_expiry: Annotated[
        bool, typer.Option("--keep-expiry", help="Keep expires_at, which is cleared by default.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Include those that were replayed before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be sent.")] = False,
    json: Json = False,
) -> None:
    """Send dead letters to the workers again, unchanged or fixed; each only once.

    A replayed dead letter stays where it is and is marked as replayed. Its
    request keeps its id, so its result reaches whoever waits for that id. Those
    that the brokers refuse are named, the others are sent, and the exit code is 1.

    Example: zimage dead-letters replay --code INVALID_REQUEST --set width=1024
    """
    settings, wanted = settings_of(context), _wanted(code, id_, tenant, at)
    if wanted == LetterFilter() and not all_:
        raise typer.BadParameter("select some: --code, --id, --tenant, --at or --all", param_hint="replay")
    if change and value:
        raise typer.BadParameter("give only one of them", param_hint="--set, --value")
    replay_values = _ReplayValues(settings, _changes(change or []), _bytes_of(value), keep_expiry)
    tally = _Tally(settings, json, dry_run)
    with create_codec(settings.registry) as codec, _replayer(settings, dry_run) as replayer:
        replayed = read_notes(settings) if replayer is None else replayer.replayed
        waiting: list[Replay] = []
        for letter in read_letters(settings, codec, wanted):
            if letter in replayed and not again:
                tally.skipped += 1
                continue
            try:
                if value is None:
                    letter = complete_letter(settings.kafka, codec, letter)
                waiting.append(Replay(letter, replay_values.value_for(letter, codec, tally.chosen)))
            except (NotReplayableError, RequestError) as error:
                tally.refuse(letter, error)
                continue
            tally.chosen += 1
            if len(waiting) >= MAX_LETTERS_PER_TRANSACTION and not replay_values.single:
                tally.send(waiting, replayer)
            if tally.chosen == limit:
                break
        tally.send(waiting, replayer)
    raise typer.Exit(tally.end())


@app.command()
def release(
    context: typer.Context,
    code: Codes = None,
    minutes: Annotated[
        float, typer.Option(min=0, help="Hold nothing back for this long; 0: hold back again.")
    ] = 60.0,
) -> None:
    """Release requests that workers hold back as possibly the deployment's fault.

    All workers of the group retry them once, within seconds: what is fixed by now
    is served, what fails again goes to the dead letters.

    Example: zimage dead-letters release --code UNKNOWN_SCHEMA
    """
    settings = settings_of(context)
    codes = [Code(name) for name in sorted(_wanted(code, None, None, None).codes)] or list(DEPLOYMENT_CODES)
    strange = [each for each in codes if each not in DEPLOYMENT_CODES]
    if strange:
        raise typer.BadParameter(
            f"{strange[0]} is never held back, only {', '.join(DEPLOYMENT_CODES)} are", param_hint="--code"
        )
    until = datetime.now(UTC) + timedelta(minutes=minutes)
    write_releases(settings, codes, until.timestamp())
    names = ", ".join(codes)
    if minutes:
        print_line(f"{names}: nothing is held back until {until:%Y-%m-%d %H:%M:%S} UTC", err=True)
    else:
        print_line(f"{names}: workers hold back again what may be the deployment's fault", err=True)


class _ReplayValues:
    """Determines the value that a replay sends for each dead letter."""

    def __init__(
        self, settings: Settings, changes: dict[str, Any], value: bytes | None, keep_expiry: bool
    ) -> None:
        self._settings = settings
        self._changes = changes
        self._value = value
        self._keep_expiry = keep_expiry
        self._limits = Limits(settings.engine.max_pixels, settings.engine.allow_guidance)
        self.single = value is not None or "request_id" in changes
        """Whether the options make sense for one dead letter only."""

    def value_for(self, letter: DeadLetter, codec: Codec, chosen: int) -> bytes | None:
        if self.single and chosen:
            raise typer.BadParameter(
                "several dead letters are selected; choose one with --at",
                param_hint="--value, --set request_id",
            )
        if self._value is not None:
            return self._value
        request = request_to_send(letter, self._changes, keep_expiry=self._keep_expiry)
        if request is None:
            return letter.value
        # Only what a person changed is checked: what failed unchanged may pass by now.
        if self._changes:
            request = check_request(request, self._limits)
        return codec.encode_request(request, self._settings.topics.requests)


class _Tally:
    """Reports what is sent and what is not."""

    def __init__(self, settings: Settings, json: bool, dry_run: bool) -> None:
        self._requests = settings.topics.requests
        self._json = json
        self._dry_run = dry_run
        self.chosen = self.skipped = 0
        self._refused = 0

    def refuse(self, letter: DeadLetter, error: Exception | str) -> None:
        self._refused += 1
        print_line(f"{letter.place} {id_of(letter)} is not sent: {error}", err=True)

    def send(self, waiting: list[Replay], replayer: Replayer | None) -> None:
        """Send these replays, report each, and empty the list."""
        refusals = [] if replayer is None else replayer.send(waiting)
        for refusal in refusals:
            self.chosen -= 1
            waiting.remove(refusal.replay)
            self.refuse(
                refusal.replay.letter,
                f"the brokers refuse it ({refusal.reason}). A replay has two headers more than the record "
                f"that failed; raise max.message.bytes of {self._requests}, or fix it with --set or --value",
            )
        for each in waiting:
            letter = each.letter
            said = {
                "place": str(letter.place),
                "request_id": letter.request_id,
                "code": letter.code,
                "sent": not self._dry_run,
                "changed": each.value != letter.value,
            }
            changed = "changed" if said["changed"] else "as it was"
            code = shortened(letter.code, NAME_CHARACTERS)
            line = f"{letter.place!s:>8}  {code:<17} {id_of(letter)}  {changed}"
            if self._json:
                print_json(said)
            else:
                print_line(line)
        waiting.clear()

    def end(self) -> int:
        """Print the summary, and return the exit code."""
        verb = "would be replayed" if self._dry_run else "replayed"
        parts = [f"{self.chosen:,} {verb}"]
        if self.skipped:
            parts.append(f"{self.skipped:,} left out: replayed before (--again sends them again)")
        if self._refused:
            parts.append(f"{self._refused:,} not sent")
        print_line("; ".join(parts), err=True)
        return 1 if self._refused or not (self.chosen or self.skipped) else 0


@contextmanager
def _replayer(settings: Settings, dry_run: bool) -> Iterator[Replayer | None]:
    if dry_run:
        yield None
        return
    with Replayer(settings) as replayer:
        yield replayer


def _wanted(
    codes: list[str] | None, ids: list[str] | None, tenants: list[str] | None, at: list[str] | None
) -> LetterFilter:
    known = [code.upper() for code in codes or ()]
    for code in known:
        if code not in Code.__members__:
            raise typer.BadParameter(f"{code!r} is none of {', '.join(Code)}", param_hint="--code")
    places = set()
    for text in at or ():
        place = _place(text)
        if place is None:
            raise typer.BadParameter(f"{text!r} is not PARTITION:OFFSET", param_hint="--at")
        places.add(place)
    return LetterFilter(frozenset(known), frozenset(ids or ()), frozenset(tenants or ()), frozenset(places))


def _place(text: str) -> LetterPosition | None:
    try:
        return LetterPosition.parse(text)
    except ValueError:
        return None


def _changes(pairs: list[str]) -> dict[str, Any]:
    changes = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in FIELDS:
            fields = ", ".join(sorted(FIELDS))
            raise typer.BadParameter(f"{pair!r} is not FIELD=VALUE with one of {fields}", param_hint="--set")
        changes[name] = field_from_text(name, text)
    return changes


def _bytes_of(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint="--value") from error


def _print_json(letter: DeadLetter, replayed: bool) -> None:
    print_json({**letter.as_dict(), "replayed": replayed})


def _end_if_none(count: int) -> None:
    if not count:
        print_line("there are no such dead letters", err=True)
        raise typer.Exit(1)
