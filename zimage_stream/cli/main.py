"""The command ``zimage``: the one place that knows both producers and consumers; it loads them on demand."""

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
from zimage_stream.cli.terminal import prepare_streams, print_error, print_line
from zimage_stream.errors import RequestError, SettingsError, ZImageError
from zimage_stream.escaping import LineFormatter, escaped
from zimage_stream.proxies import exclude_this_machine

DONE, FAILED_WORK, WRONG_USE = 0, 1, 2


class _CommandSpec(NamedTuple):
    """The location of a command, as ``module:function`` or ``module:typer app``, and its help text."""

    target: str
    help: str


_COMMANDS = {
    "demo": _CommandSpec("zimage_stream.cli.demo.command:demo", "Generate images on this machine."),
    "topics": _CommandSpec("zimage_stream.cli.main:topics", "Create or check the topics."),
    "worker": _CommandSpec("zimage_consumers.image_worker.command:worker", "Generate images."),
    "produce": _CommandSpec(
        "zimage_producers.produce.command:produce", "Request images: one prompt, or a file of them."
    ),
    "results": _CommandSpec("zimage_consumers.results.command:results", "Show the results of requests."),
    "status": _CommandSpec(
        "zimage_stream.cli.status.command:status", "Show the backlog, or where one request is."
    ),
    "cancel": _CommandSpec(
        "zimage_stream.cli.cancel:cancel", "Ask that requests be ended: some, or a batch of them."
    ),
    "dead-letters": _CommandSpec(
        "zimage_consumers.dead_letters.command:app", "Inspect and replay requests that failed."
    ),
    "config": _CommandSpec("zimage_stream.cli.configuration:app", "Show the effective settings."),
}


class _LazyGroup(TyperGroup):
    """Loads a command when it is run; the list of commands needs only the texts above."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        spec = _COMMANDS.get(args[0]) if args else None
        if spec is not None:
            self.commands[args[0]] = _load(args[0], spec)
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
    """Escape the messages of usage errors, which quote arguments and names in files."""
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)
        if isinstance(message, str) and hasattr(error, "format_message"):
            error.message = escaped(message, keep="\n")  # type: ignore[attr-defined]
        raise


def _load(name: str, spec: _CommandSpec) -> Any:
    module, _, attribute = spec.target.partition(":")
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

        print_line(f"zimage {__version__}")
        raise typer.Exit


app = typer.Typer(cls=_LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for _name, _spec in _COMMANDS.items():
    app.command(_name, help=_spec.help)(lambda: None)


@app.callback()
def _zimage(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings in TOML; default: $ZIMAGE_CONFIG.")
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prompts in, images out: Kafka stream processing for Z-Image-Turbo.

    Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted.
    """
    # The command's module has been loaded, and its work begins.
    interrupt.raise_again()
    context.obj = {"config": config}


topics = typer.Typer(no_args_is_help=True, add_completion=False, help="Create or check the topics.")

Partitions = Annotated[int, typer.Option(min=1, help="Partitions of the requests topic.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


@topics.command("create")
def topics_create(
    context: typer.Context,
    partitions: Partitions = 48,
    replication_factor: Annotated[
        int, typer.Option(help="Replicas of each partition; -1: the broker's default.")
    ] = -1,
    json: Json = False,
) -> None:
    """Create the missing topics; existing ones stay unchanged.

    Example: zimage topics create --replication-factor 3
    """
    from zimage_stream.cli.printing import print_json
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
            print_json({"topic": name, "created": new})
        else:
            print_line(f"{name} {'created' if new else 'already existed'}")


@topics.command("check")
def topics_check(context: typer.Context, partitions: Partitions = 48, json: Json = False) -> None:
    """Check the topics against their requirements; exit 1 if one is not met.

    Warnings alone, as on a single-broker cluster, do not count.

    Example: zimage topics check --partitions 12
    """
    from zimage_stream.cli.printing import print_json
    from zimage_stream.kafka.oldest import oldest_unresolved
    from zimage_stream.kafka.topics import Severity, check_topics, topic_exists

    settings = _settings(context)
    kafka, requests = settings.kafka, settings.topics.requests
    there = topic_exists(kafka, requests)
    oldest = oldest_unresolved(kafka, requests, settings.worker.group_id) if there else None
    findings = check_topics(kafka, settings.topics, request_partitions=partitions, oldest=oldest)
    for finding in findings:
        if json:
            print_json(asdict(finding))
        else:
            print_line(str(finding))
    if any(finding.severity is Severity.ERROR for finding in findings):
        raise typer.Exit(FAILED_WORK)
    if not json:
        print_line("the topics meet all requirements")


def _settings(context: typer.Context) -> Any:
    from zimage_stream.cli.context import settings_of

    return settings_of(context)


def main() -> None:
    """Run the command line; our own errors are printed as one line, others with their traceback."""
    prepare_streams()
    exclude_this_machine(os.environ)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # What librdkafka logs about an unreachable broker is also in our own errors.
    logging.getLogger("zimage_stream.kafka.librdkafka").setLevel(logging.CRITICAL)
    try:
        app(prog_name="zimage")
    except ZImageError as error:
        print_error(f"zimage: {error}")
        wrong = isinstance(error, SettingsError | RequestError)
        sys.exit(WRONG_USE if wrong else FAILED_WORK)
    except Exception:
        print_error(traceback.format_exc().rstrip())
        sys.exit(FAILED_WORK)
