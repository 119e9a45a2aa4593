"""Keeps one worker process per device running."""

from __future__ import annotations

import ctypes
import http.client
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

from prometheus_client import CollectorRegistry

from zimage_consumers.image_worker.exits import ExitCode
from zimage_consumers.image_worker.host.loading import available_bytes, may_load, weights_bytes
from zimage_consumers.image_worker.host.report import Report
from zimage_stream.cli import interrupt
from zimage_stream.errors import SettingsError
from zimage_stream.settings import Settings
from zimage_stream.telemetry.federation import Federation, Member
from zimage_stream.telemetry.logs import QUOTED
from zimage_stream.telemetry.server import serve

log = logging.getLogger(__name__)

KILL_MARGIN_S = 10.0
"""Seconds, on top of its drain time, before a worker told to stop is killed."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
STEADY_S = 60.0
"""Lifetime, in seconds, after which a worker's death starts the back-off from the beginning."""
LOOP_DEATHS, LOOP_S = 4, 300.0
"""This many deaths within this many seconds are a crash loop, which waiting does not fix."""
LAST_LINES = 20
PROBE_EVERY_S, PROBE_TIMEOUT_S = 5.0, 5.0
SILENT_PROBES = 6
"""Consecutive failed probes after which a worker is stopped: a minute where it does not respond. They are
counted rather than timed, since a supervisor that was itself frozen knows nothing of that time."""
STOP_S = 10.0
"""Seconds that a silent worker gets to end by itself after SIGTERM, before it is killed."""


@dataclass(frozen=True, slots=True)
class Device:
    """Device of one worker: ``kind`` cuda or cpu, ``index`` among the devices requested."""

    kind: str
    index: int
    visible: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which a process sees this device and no other."""
        return {"CUDA_VISIBLE_DEVICES": self.visible, "ZIMAGE_ENGINE__DEVICE": self.kind}


def devices_of(text: str, gpus: int) -> list[Device]:
    """Parse the devices named by ``all``, ``0,2``, ``cpu`` or ``cpu:2``.

    Args:
        text: the argument given on the command line.
        gpus: number of GPUs of this machine.

    Raises:
        SettingsError: the text is none of these, or names a GPU that does not exist.
    """
    kind, _, count = text.partition(":")
    if kind == "cpu" and (count or "1").isdecimal() and int(count or "1") > 0:
        return [Device("cpu", index, "") for index in range(int(count or "1"))]
    return [Device("cuda", index, str(index)) for index in _gpus_of(text, gpus)]


def _gpus_of(text: str, gpus: int) -> Sequence[int]:
    if text == "all":
        if gpus == 0:
            raise SettingsError("--devices all: there is no GPU here; --devices cpu runs without one")
        return range(gpus)
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise SettingsError(f"--devices: got {text!r}, takes all, a list of GPUs such as 0,2, cpu or cpu:2")
    chosen = sorted({int(number) for number in numbers})
    if chosen[-1] >= gpus:
        raise SettingsError(f"--devices: got {text!r}, but there are {gpus} GPUs here, numbered from 0")
    return chosen


def count_gpus() -> int:
    """Count the GPUs that the driver lists, without loading torch; 0 where there is no driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip()])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def wait_before_restart(deaths: int) -> float:
    """Seconds before a worker that died ``deaths`` times in a row is restarted."""
    return float(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (deaths - 1)))


@dataclass(slots=True)
class _Child:
    device: Device
    slot: str
    process: subprocess.Popen[bytes] | None = None
    report: Report | None = None
    started: float = 0.0
    deaths: int = 0
    died: deque[float] = field(default_factory=lambda: deque(maxlen=LOOP_DEATHS))
    lines: deque[bytes] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    listener: threading.Thread | None = None
    problem: str | None = None
    due: float = 0.0
    done: bool = False
    silent: int = 0
    stopped_at: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def port(self) -> int | None:
        """Port of the running process; ``None`` while there is none, or none that listens."""
        return self.report.port if self.process is not None and self.report is not None else None

    @property
    def loading(self) -> bool:
        return self.process is not None and self.report is not None and not self.report.loaded


class Supervisor:
    """Starts, watches and restarts worker processes; one death never touches the others.

    Args:
        arguments: command line of one unsupervised worker.
    """

    def __init__(self, settings: Settings, devices: Sequence[Device], arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        self._kill_after = settings.worker.drain_timeout_s + KILL_MARGIN_S
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._interrupted = False
        self._telemetry = settings.telemetry
        self._engine = settings.engine
        self._children = []
        for device in devices:
            slot = settings.slot(device.kind, device.index)
            if settings.worker.slot and len(devices) > 1:
                slot = f"{slot}/{device.index}"
            environment = device.environment | {
                "ZIMAGE_WORKER__SLOT": slot,
                # Each on a port of its own, known only to this process.
                "ZIMAGE_TELEMETRY__HOST": "127.0.0.1",
                "ZIMAGE_TELEMETRY__PORT": "0",
            }
            self._children.append(_Child(device, slot, environment=environment))

    def run(self) -> int:
        """Keep the workers running until a signal. Returns the exit code of the process.

        Raises:
            SettingsError: the port for health and metrics cannot be used.
        """
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        federation, registry = Federation(self._members), CollectorRegistry()
        registry.register(federation)
        with serve(federation, registry, self._telemetry.host, self._telemetry.port) as server:
            log.info("health and metrics of all workers on port %d", server.port)
            threading.Thread(target=self._probe_all, name="probe", daemon=True).start()
            while not self._stopping.is_set():
                for child in self._children:
                    self._watch(child)
                self._stopping.wait(0.2)
            return self._stop_all()

    def _members(self) -> list[Member]:
        return [
            Member(f"{child.device.kind}:{child.device.index}", child.port, child.problem)
            for child in self._children
        ]

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._stopping.is_set():
            self._hurry.set()
        self._interrupted = number == signal.SIGINT
        log.info("signal %s: stopping the workers", signal.Signals(number).name)
        self._stopping.set()

    def _watch(self, child: _Child) -> None:
        if child.process is None:
            if time.monotonic() >= child.due and self._may_load():
                self._start(child)
            return
        if child.report is not None:
            child.report.update()
        code = child.process.poll()
        if code is None:
            self._judge_silence(child, child.process)
            return
        child.process = None
        if code == ExitCode.LEAKED:
            log.info("the worker in slot %s leaked memory and is being replaced", child.slot)
            child.due = 0.0
            return
        lived = time.monotonic() - child.started
        child.deaths = 1 if lived > STEADY_S else child.deaths + 1
        wait = wait_before_restart(child.deaths)
        child.due = time.monotonic() + wait
        log.error(
            "the worker in slot %s ended (%s) after %.1f s; restarting it in %.1f s",
            child.slot, describe(code), lived, wait,
        )  # fmt: skip
        child.died.append(time.monotonic())
        if is_crash_loop(child.died):
            if child.listener is not None:
                child.listener.join(1.0)
            last = b"".join(child.lines).decode(errors="replace")
            child.problem = (
                f"it died {LOOP_DEATHS} times within {LOOP_S:.0f} s, the last time by {describe(code)}"
            )
            log.error(
                "the worker in slot %s is in a crash loop; its last lines follow", child.slot,
                extra={QUOTED: last},
            )  # fmt: skip

    def _probe_all(self) -> None:
        """Probe every worker that has loaded its model, repeatedly.

        Runs on a thread of its own: a worker that hangs blocks its probe until the timeout.
        """
        while not self._stopping.wait(PROBE_EVERY_S):
            for child in self._children:
                process, port = child.process, child.port
                if process is None or port is None or child.loading:
                    continue
                alive = is_alive(port)
                if child.process is process:  # else the answer is about its predecessor
                    child.silent = 0 if alive else child.silent + 1

    def _judge_silence(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        """Stop a worker that is not alive: by SIGTERM, and by SIGKILL if that has no effect."""
        at = time.monotonic()
        if child.stopped_at is None and child.silent >= SILENT_PROBES:
            child.stopped_at = at
            log.error(
                "the worker in slot %s hangs: /healthz was not well at %d probes in a row; stopping it",
                child.slot, child.silent,
            )  # fmt: skip
            process.terminate()
        elif child.stopped_at is not None and at - child.stopped_at > STOP_S:
            child.stopped_at = at
            log.error("the worker in slot %s ignores SIGTERM; killing it", child.slot)
            process.kill()

    def _may_load(self) -> bool:
        loading = sum(child.loading for child in self._children)
        if not loading:
            return True
        return may_load(loading, weights_bytes(self._engine), available_bytes())

    def _start(self, child: _Child) -> None:
        if child.report is not None:
            child.report.close()
        child.silent, child.stopped_at = 0, None
        child.report, write = Report.open()
        child.process = subprocess.Popen(
            [*self._arguments, "--parent", str(os.getpid()), "--report", str(write)],
            env={**os.environ, **child.environment},
            pass_fds=(write,),
            stderr=subprocess.PIPE,
            # Not in our process group: a terminal's Ctrl-C reaches only us, and we forward it once.
            start_new_session=True,
        )
        os.close(write)
        child.listener = threading.Thread(target=_pass_on, args=(child.process, child.lines), daemon=True)
        child.listener.start()
        child.started = time.monotonic()
        log.info("worker %s started, process %d", child.slot, child.process.pid)

    def _stop_all(self) -> int:
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._kill_after
        while any(process.poll() is None for process in running):
            if time.monotonic() > deadline or self._hurry.is_set():
                for process in running:
                    process.kill()
            time.sleep(0.05)
        codes = [process.wait() for process in running]
        # A worker that was still starting dies of the signal, and left nothing behind.
        if any(code not in (ExitCode.DONE, -signal.SIGTERM) for code in codes):
            return ExitCode.FAILED
        return interrupt.EXIT_CODE if self._interrupted else ExitCode.DONE


def is_alive(port: int) -> bool:
    """Whether the worker on this port of this machine reports itself alive."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_crash_loop(died: Sequence[float]) -> bool:
    """Whether these deaths, in seconds with the oldest first, make a crash loop. Pure."""
    return len(died) >= LOOP_DEATHS and died[-1] - died[-LOOP_DEATHS] <= LOOP_S


def _pass_on(process: subprocess.Popen[bytes], lines: deque[bytes]) -> None:
    """Forward what a worker writes to stderr, and keep its last lines."""
    assert process.stderr is not None
    lines.clear()
    with process.stderr:
        for line in process.stderr:
            lines.append(line)
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()


def describe(code: int) -> str:
    """Describe an exit code in words."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    try:
        return f"exit code {code}, {ExitCode(code).name.lower().replace('_', ' ')}"
    except ValueError:
        return f"exit code {code}"


def die_with(parent: int) -> None:
    """Make the kernel stop this process when its supervisor dies, however it dies."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(ExitCode.FAILED)
