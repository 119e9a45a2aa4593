"""``zimage``: the command line. The one place that knows both sides, and loads each when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from zimage_stream.cli import interrupt
from zimage_stream.cli.terminal import complain, prepare_streams, say
from zimage_stream.errors import RequestError, SettingsError, ZImageError
from zimage_stream.escaping import LineFormatter, escaped
from zimage_stream.proxies import leave_out_this_machine

DONE, FAILED_WORK, WRONG_USE = 0, 1, 2


class _Place(NamedTuple):
    """Where a command is, as ``module:function`` or ``module:typer app``, and its line in the help."""

    target: str
    help: str


_COMMANDS = {
    "demo": _Place("zimage_stream.cli.demo.command:demo", "Make pictures here and now."),
    "topics": _Place("zimage_stream.cli.main:topics", "Create the topics, or check them."),
    "worker": _Place("zimage_consumers.image_worker.command:worker", "Generate pictures."),
    "produce": _Place("zimage_producers.produce.command:produce", "Ask for pictures: one prompt, or a file."),
    "results": _Place("zimage_consumers.results.command:results", "What came of requests."),
    "status": _Place("zimage_stream.cli.status.command:status", "Where things stand, or one request does."),
    "dead-letters": _Place("zimage_consumers.dead_letters.command:app", "What could not be served."),
    "config": _Place("zimage_stream.cli.configuration:app", "The settings in force."),
}


class _LazyGroup(TyperGroup):
    """Loads a command when it is run; for the overview the lines above are enough."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        place = _COMMANDS.get(args[0]) if args else None
        if place is not None:
            self.commands[args[0]] = _load(args[0], place)
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _escaped_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _escaped_errors():
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)


@contextlib.contextmanager
def _escaped_errors() -> Iterator[None]:
    """What is said of wrong use quotes arguments, and names in files."""
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)
        if isinstance(message, str) and hasattr(error, "format_message"):
            error.message = escaped(message, keep="\n")  # type: ignore[attr-defined]
        raise


def _load(name: str, place: _Place) -> Any:
    module, _, attribute = place.target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    app = found
    if not isinstance(found, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command(name)(found)
    command = typer.main.get_command(app)
    command.name = name
    return command


def _show_version(wanted: bool) -> None:
    if wanted:
        from zimage_stream import __version__

        say(f"zimage {__version__}")
        raise typer.Exit


app = typer.Typer(cls=_LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for _name, _place in _COMMANDS.items():
    app.command(_name, help=_place.help)(lambda: None)


@app.callback()
def _zimage(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in TOML; else $ZIMAGE_CONFIG.")
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prompts in, pictures out: Kafka stream processing for Z-Image-Turbo.

    Exit codes: 0 done, 1 failed work, 2 wrong use, 130 interrupted.
    """
    # The command's module is loaded by now, and its work begins.
    interrupt.raises()
    context.obj = {"config": config}


topics = typer.Typer(no_args_is_help=True, add_completion=False, help="Create the topics, or check them.")

Partitions = Annotated[int, typer.Option(min=1, help="Partitions of the requests topic.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


@topics.command("create")
def topics_create(
    context: typer.Context,
    partitions: Partitions = 48,
    replication_factor: Annotated[
        int, typer.Option(help="Copies of each partition; -1: the broker's default.")
    ] = -1,
    json: Json = False,
) -> None:
    """Make the topics that are not there; those that are stay as they are.

    Example: zimage topics create --replication-factor 3
    """
    from zimage_stream.cli.printing import say_json
    from zimage_stream.kafka.topics import create_topics

    settings = _settings(context)
    made = create_topics(
        settings.kafka,
        settings.topics,
        request_partitions=partitions,
        replication_factor=replication_factor,
    )
    for name, new in made.items():
        if json:
            say_json({"topic": name, "created": new})
        else:
            say(f"{name} {_said(new)}")


@topics.command("check")
def topics_check(context: typer.Context, partitions: Partitions = 48, json: Json = False) -> None:
    """Compare the topics with what is needed; exit 1 where something differs.

    A warning alone, as on a cluster of one broker, is no difference.

    Example: zimage topics check --partitions 12
    """
    from zimage_stream.cli.printing import say_json
    from zimage_stream.kafka.oldest import oldest_unresolved
    from zimage_stream.kafka.topics import Severity, check_topics, topic_exists

    settings = _settings(context)
    kafka, requests = settings.kafka, settings.topics.requests
    there = topic_exists(kafka, requests)
    oldest = oldest_unresolved(kafka, requests, settings.worker.group_id) if there else None
    findings = check_topics(kafka, settings.topics, request_partitions=partitions, oldest=oldest)
    for finding in findings:
        if json:
            say_json(asdict(finding))
        else:
            say(str(finding))
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(FAILED_WORK)
    if not json:
        say("the topics are as they must be")


def _said(new: bool) -> str:
    return "created" if new else "was there"


def _settings(context: typer.Context) -> Any:
    from zimage_stream.cli.context import settings_of

    return settings_of(context)


def main() -> None:
    """Run the command line: our own errors become one clear line, others keep their traceback."""
    prepare_streams()
    leave_out_this_machine(os.environ)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # What librdkafka says of a broker that is down comes as an error of ours as well.
    logging.getLogger("zimage_stream.kafka.librdkafka").setLevel(logging.CRITICAL)
    try:
        app(prog_name="zimage")
    except ZImageError as error:
        complain(f"zimage: {error}")
        wrong = isinstance(error, SettingsError | RequestError)
        sys.exit(WRONG_USE if wrong else FAILED_WORK)
    except Exception:
        complain(traceback.format_exc().rstrip())
        sys.exit(FAILED_WORK)
