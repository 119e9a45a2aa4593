"""Kafka, MinIO and a schema registry for a shell: ``python -m tests.services --help``."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.services.errors import ServiceError
from tests.services.native import kafka, minio, registry
from tests.services.native.process import NativeService, launch_all, stop_all
from tests.services.sources import GIVEN_KAFKA, GIVEN_MINIO, GIVEN_REGISTRY

BUCKET = "zimage"

_FAILED = 1
_SIGNALLED = 128


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    # The default handler would end this process before it has removed the services' data.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_SIGNALLED + signal.SIGTERM))
    try:
        if options.action == "prepare":
            return _prepare(options.no_registry)
        if options.action == "run":
            return _run(options.command, not options.no_registry)
        return _serve(options.write_env, not options.no_registry)
    except ServiceError as error:
        print(error, file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        return _SIGNALLED + signal.SIGINT


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.services",
        description="Without an action: start Kafka, MinIO and a schema registry as plain processes, print "
        "what a shell needs to use them, and stop them at Ctrl-C.",
    )
    parser.add_argument("--write-env", type=Path, metavar="FILE", help="also write the export lines there")
    no_registry = argparse.ArgumentParser(add_help=False)
    no_registry.add_argument(
        "--no-registry", action="store_true", default=argparse.SUPPRESS, help="leave the schema registry out"
    )
    parser.add_argument("--no-registry", action="store_true", help="leave the schema registry out")
    actions = parser.add_subparsers(dest="action", title="actions", metavar="")
    actions.add_parser("prepare", parents=[no_registry], help="only fetch and build what is missing")
    run = actions.add_parser("run", parents=[no_registry], help="run a command with them, then stop them")
    run.add_argument("command", nargs="+", metavar="-- COMMAND")
    return parser.parse_args(arguments)


def _prepare(no_registry: bool) -> int:
    for prepare in (kafka.prepare, minio.prepare, *(() if no_registry else (registry.prepare,))):
        print(prepare())
    return 0


def _serve(write_env: Path | None, with_registry: bool) -> int:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with _services(with_registry) as variables:
        lines = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        if write_env is not None:
            _write_private(write_env, lines)
        print(lines, end="", flush=True)
        print("\nrunning until Ctrl-C", file=sys.stderr, flush=True)
        stop.wait()
    return 0


def _run(command: Sequence[str], with_registry: bool) -> int:
    with _services(with_registry) as variables:
        # The command receives Ctrl-C from the terminal as we do, and decides what it means.
        signal.signal(signal.SIGINT, lambda *_: None)
        try:
            child = subprocess.Popen(command, env={**os.environ, **variables})
        except OSError as error:
            raise ServiceError(f"{command[0]} cannot be run: {error}") from error
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        code = child.wait()
    return code if code >= 0 else _SIGNALLED - code


@contextmanager
def _services(with_registry: bool) -> Iterator[Mapping[str, str]]:
    """Run the services, with a bucket created. Yields the variables that a client needs."""
    with tempfile.TemporaryDirectory(prefix="zimage-services-") as folder:
        broker = kafka.Kafka(Path(folder) / "kafka")
        store = minio.Minio(Path(folder) / "minio")
        schemas = registry.Registry(Path(folder) / "registry") if with_registry else None
        services: list[NativeService] = [broker, store, *([schemas] if schemas else [])]
        print(f"starting {', '.join(service.title for service in services)}", file=sys.stderr, flush=True)
        launch_all(services)
        try:
            store.address.client().make_bucket(bucket_name=BUCKET)
            yield _variables(broker, store, schemas)
        finally:
            stop_all(services)


def _variables(
    broker: kafka.Kafka, store: minio.Minio, schemas: registry.Registry | None
) -> Mapping[str, str]:
    """Settings for the ``zimage`` command, and addresses for a run of the tests."""
    of_registry = (
        {
            "ZIMAGE_REGISTRY__URL": schemas.url,
            # It starts out empty.
            "ZIMAGE_REGISTRY__AUTO_REGISTER": "true",
            GIVEN_REGISTRY: schemas.url,
        }
        if schemas
        else {}
    )
    return {
        "ZIMAGE_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "ZIMAGE_STORE__KIND": "minio",
        "ZIMAGE_STORE__ENDPOINT": store.endpoint,
        "ZIMAGE_STORE__ACCESS_KEY": store.access_key,
        "ZIMAGE_STORE__SECRET_KEY": store.secret_key,
        "ZIMAGE_STORE__SECURE": "false",
        "ZIMAGE_STORE__BUCKET": BUCKET,
        **of_registry,
        GIVEN_KAFKA: broker.bootstrap_servers,
        GIVEN_MINIO: store.address.url,
    }


def _write_private(path: Path, text: str) -> None:
    """Write the file atomically and readable by its owner only: it contains passwords."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
