"""Runs the demo: a broker or the configured one, a worker process, 24 prompts and a poison."""

from __future__ import annotations

import contextlib
import hashlib
import io
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from zimage_stream.cli.demo.prompts import POISON, SIDE, requests
from zimage_stream.client.gallery import write_gallery
from zimage_stream.client.prompt_client import PromptClient
from zimage_stream.deadline import Deadline
from zimage_stream.errors import ResultTimeoutError, StoreError, ZImageError
from zimage_stream.escaping import escaped
from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.imaging import contact_sheet
from zimage_stream.kafka.clients import create_producer
from zimage_stream.kafka.embedded import EmbeddedBroker
from zimage_stream.kafka.reader import POLL_S, TopicReader
from zimage_stream.kafka.record import Record
from zimage_stream.kafka.topics import create_topics
from zimage_stream.settings import Settings, TopicSettings, environment_of, load_settings
from zimage_stream.stores import create_store

TOPICS = TopicSettings(
    requests="zimage-demo.requests", results="zimage-demo.results", dead_letters="zimage-demo.dead-letters"
)
STARTUP_S = 600.0
TIMEOUT_S = 120.0


class WorkerDiedError(ZImageError):
    """The demo's worker ended before its work was done."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture: its request, its result, and its file beside the page."""

    request: PromptRequest
    result: ImageResult
    file: str

    def row(self) -> dict[str, Any]:
        """For the gallery."""
        request, image = self.request, self.result.image
        assert image is not None
        return {
            "request_id": request.request_id,
            "tenant": request.tenant,
            "status": self.result.status,
            "prompt": request.prompt,
            "file": self.file,
            "width": image.width,
            "height": image.height,
            "seed": image.seed,
            "steps": image.steps,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo saw: results by request id in order of arrival, seconds, busy share 0 to 1."""

    results: dict[str, ImageResult]
    elapsed_s: float
    busy: float
    dead_letters: list[str]


def run_demo(config: Path | None, configured: bool, out: Path, console: Console) -> int:
    """Run it and show what came of it; returns the exit code.

    Raises:
        ZImageError: something it needs is not there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if configured:
            settings = load_settings(config, _overrides())
            create_topics(settings.kafka, settings.topics)
        else:
            console.print("Starting an embedded broker and a worker with the packaged checkpoint.")
            broker = stack.enter_context(EmbeddedBroker(TOPICS))
            settings = load_settings(None, _embedded(broker.bootstrap_servers, out))
        _create_store(settings)
        port = stack.enter_context(_worker(settings, out / "worker.log", console))
        asked = requests()
        outcome = _serve(settings, asked, port, console)
        shown = _save(settings, asked, outcome, out)
    _report(outcome, asked, shown, settings, out, console)
    return 0 if len(shown) == len(asked) and len(outcome.dead_letters) == 1 else 1


def _embedded(bootstrap_servers: str, out: Path) -> dict[str, Any]:
    return _overrides() | {
        "kafka": {"bootstrap_servers": bootstrap_servers},
        "registry": {"url": None},
        "store": {"kind": "directory", "path": str((out / "store").resolve())},
        # The embedded broker keeps no transactional offsets.
        "worker": {"guarantee": "at_least_once", "group_id": "zimage-demo"},
    }


def _overrides() -> dict[str, Any]:
    """What the demo needs whatever is configured: topics of its own, and the packaged model."""
    return {
        "topics": TOPICS.model_dump(),
        "worker": {"group_id": "zimage-demo"},
        "engine": {"kind": "zimage", "model": "tiny"},
        "telemetry": {"port": _free_port()},
    }


def _create_store(settings: Settings) -> None:
    store = create_store(settings.store)
    try:
        store.create()
    finally:
        store.close()


@contextlib.contextmanager
def _worker(settings: Settings, log: Path, console: Console) -> Iterator[int]:
    """A worker process with these settings, ready; yields its health port."""
    port = settings.telemetry.port
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "zimage_stream", "worker", "--no-supervise"],
            env=environment_of(settings),
            stdin=subprocess.DEVNULL,
            stderr=sink,
            stdout=sink,
        )
        try:
            with console.status("Loading the model"):
                _wait_ready(process, port, log)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(settings.worker.drain_timeout_s + 10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").splitlines()[-5:]
            raise WorkerDiedError("the worker ended at start:\n" + "\n".join(lines))
        with contextlib.suppress(OSError):
            if _get(port, "readyz"):
                return
        time.sleep(0.1)
    raise WorkerDiedError(f"the worker was not ready within {STARTUP_S:.0f} s; its log is {log}")


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
        return str(answer.read().decode())


def _serve(settings: Settings, asked: Sequence[PromptRequest], port: int, console: Console) -> Outcome:
    results: dict[str, ImageResult] = {}
    started, busy_before = time.monotonic(), _busy_seconds(port)
    columns = (
        SpinnerColumn(),
        TextColumn("pictures"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with PromptClient(settings) as client, Progress(*columns, console=console) as progress:
        task = progress.add_task("pictures", total=len(asked))
        for index, request in enumerate(asked):
            client.submit(request)
            if index == len(asked) // 2:
                _send_poison(settings)
        try:
            for result in client.results([request.request_id for request in asked], timeout=TIMEOUT_S):
                results[result.request_id] = result
                progress.advance(task)
        except ResultTimeoutError as error:
            console.print(escaped(str(error)), style="red")
    first = min((r.started_at.timestamp() for r in results.values() if r.started_at), default=0.0)
    last = max((r.completed_at.timestamp() for r in results.values()), default=1.0)
    busy = (_busy_seconds(port) - busy_before) / max(last - first, 1e-9)
    return Outcome(results, time.monotonic() - started, min(1.0, busy), _dead_letters(settings))


def _busy_seconds(port: int) -> float:
    for line in _get(port, "metrics").splitlines():
        if line.startswith("zimage_engine_busy_seconds_total"):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def _send_poison(settings: Settings) -> None:
    producer = create_producer(settings.kafka)
    producer.produce(settings.topics.requests, key=b"poison", value=POISON)
    producer.flush(10)


def _dead_letters(settings: Settings) -> list[str]:
    """The dead letters whose value is the demo's poison of this run, as lines for people."""
    with TopicReader(settings.kafka, settings.topics.dead_letters) as reader:
        # A transaction's marker takes an offset too, so the last letter is at most two back.
        reader.start({number: max(0, end - 2) for number, end in reader.end_offsets().items()})
        deadline = Deadline(10.0)
        while not deadline.passed:
            record = reader.poll(POLL_S)
            if record is not None and record.value == POISON:
                return [_describe(record)]
    return []


def _describe(letter: Record) -> str:
    said = {name: value.decode() for name, value in letter.headers if value is not None}
    return (
        f"{said['zimage.code']}: {said['__connect.errors.exception.message']} "
        f"(partition {said['__connect.errors.partition']}, offset {said['__connect.errors.offset']})"
    )


def _save(settings: Settings, asked: Sequence[PromptRequest], outcome: Outcome, out: Path) -> list[Shown]:
    """Fetch the pictures, check each against its result, and lay them out."""
    folder = out / "images"
    folder.mkdir(exist_ok=True)
    store = create_store(settings.store)
    shown, pictures = [], []
    try:
        for number, request in enumerate(asked, 1):
            result = outcome.results.get(request.request_id)
            if result is None or result.image is None:
                continue
            data = store.get(result.image.key)
            if hashlib.sha256(data).hexdigest() != result.image.sha256:
                raise StoreError(f"{result.image.uri} is not the object that its result states")
            file = folder / f"{number:02d}.png"
            file.write_bytes(data)
            pictures.append(Image.open(io.BytesIO(data)).convert("RGB"))
            shown.append(Shown(request, result, f"images/{file.name}"))
    finally:
        store.close()
    if pictures:
        contact_sheet(pictures, columns=6, cell=2 * SIDE).save(out / "contact-sheet.png")
    note = "".join(f"Dead letter: {line}\n" for line in outcome.dead_letters)
    write_gallery(out, "zimage_stream demo", (each.row() for each in shown), note)
    return shown


def _report(
    outcome: Outcome,
    asked: Sequence[PromptRequest],
    shown: Sequence[Shown],
    settings: Settings,
    out: Path,
    console: Console,
) -> None:
    totals = sorted(r.timing.total_ms for r in outcome.results.values() if r.timing.total_ms is not None)
    cuts = quantiles(totals, n=20, method="inclusive") if len(totals) > 1 else [0.0] * 19
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("pictures", f"{len(shown)} of {len(asked)}")
    table.add_row("pictures/s", f"{len(shown) / outcome.elapsed_s:.1f}")
    table.add_row("request to result", f"p50 {cuts[9]:.0f} ms, p95 {cuts[18]:.0f} ms")
    table.add_row("engine busy", f"{outcome.busy:.0%}")
    table.add_row("guarantee", settings.worker.guarantee)
    console.print(table)
    for line in outcome.dead_letters or ["none, although a poisonous record was sent"]:
        console.print(escaped(f"dead letter: {line}"), soft_wrap=True)
    for path in ("contact-sheet.png", "index.html"):
        console.print(escaped(str(out / path)), soft_wrap=True)
    console.print("\nNext, on your own Kafka and store (README, «Against a real cluster»):")
    console.print('  zimage produce "a red heart on a white background" --wait --out pictures')


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
