"""The command line as a user types it; nothing here needs a broker."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO

import pytest

from zimage_stream.cli.main import main
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.embedded import EmbeddedBroker
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.settings import KafkaSettings, Settings


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def zimage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process."""
    for name in [name for name in os.environ if name.startswith("ZIMAGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["zimage", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run


def start(*words: str, stderr: int | IO[str] = subprocess.PIPE, **env: str) -> subprocess.Popen[str]:
    """Starts the command in a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ZIMAGE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "zimage_stream", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        env={**inherited, "PYTHONUTF8": "1", **env},
    )


def finish(process: subprocess.Popen[str], stdin: str | None = None) -> Done:
    out, err = process.communicate(stdin, timeout=120)
    return Done(process.returncode, out, err)


@pytest.fixture
def unused_address() -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_the_version_is_that_of_the_package(zimage: Run) -> None:
    done = zimage("--version")
    assert (done.returncode, done.stdout) == (0, f"zimage {version('zimage-stream')}\n")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("topics",),
        ("topics", "create"),
        ("topics", "check"),
        ("produce",),
        ("results",),
        ("cancel",),
        ("worker",),
    ],
)
def test_help_fits_a_terminal(zimage: Run, words: tuple[str, ...]) -> None:
    done = zimage(*words, "--help")
    assert done.returncode == 0, done.stderr
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert "--help" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nosuch",), "nosuch"),
        (("produce",), "either a prompt or --file"),
        (("produce", "a", "--file", "b.csv"), "either a prompt or --file"),
        (("produce", "a", "--width", "wide"), "--width"),
        (("produce", "a", "--name-by", "city"), "require --file"),
        (("produce", "--file", "nosuch.csv"), "nosuch.csv: No such file"),
        (("produce", "--file", "/dev/null"), "--input-format"),
        (("produce", "--file", "a.csv", "--request-id", "a"), "have their own ids"),
        (("produce", "a", "--attribute", "colour"), "NAME=VALUE"),
        (("produce", "a", "--width", "1000"), "width: got 1000, takes a multiple of 16"),
        (("produce", "a", "--previews", "4"), "previews: got 4, takes a whole number from 0 to 3"),
        (("produce", "a", "--expires-at", "soon"), "expires_at"),
        (("results", "--status", "nosuch"), "nosuch"),
        (("cancel",), "either IDs, --batch or --file"),
        (("cancel", "a", "--batch", "b"), "either IDs, --batch or --file"),
        (("cancel", "a", "b c"), "request_id: got 'b c', takes 1 to 128 of"),
        (("cancel", "a", "--tenant", ""), "tenant: got '', takes 1 to 128 of"),
        (("cancel", "--batch", "b" * 129), "batch_id: got"),
        (("cancel", "a", "--reason", "b" * 501), "takes text of at most 500 characters"),
        (("cancel", "a", "--reason", "b\x1b"), "reason: got 'b\\x1b', takes text without control characters"),
        (("cancel", "a", "--timeout", "-1"), "--timeout"),
        (("cancel", "a", "--timeout", "nan"), "--timeout"),
        (("cancel", "--file", "nosuch.txt"), "nosuch.txt: No such file"),
        (("cancel", "--file", "/dev/null"), "/dev/null: it is empty, takes one id per line"),
        (("--config", "nosuch.toml", "results"), "does not exist"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_clear_message(
    zimage: Run, words: tuple[str, ...], says: str
) -> None:
    done = zimage(*words)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_invalid_setting_is_reported_by_its_variable(zimage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIMAGE_WORKER__WINDOW", "many")
    done = zimage("topics", "check")
    assert done.returncode == 2
    assert "ZIMAGE_WORKER__WINDOW" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_settings_file_is_read(zimage: Run, tmp_path: Path) -> None:
    config = tmp_path / "zimage.toml"
    config.write_text("[kafka]\nbootstrap_server = 'misspelt:9092'\n", encoding="utf-8")
    done = zimage("--config", str(config), "topics", "check")
    assert done.returncode == 2
    assert "ZIMAGE_KAFKA__BOOTSTRAP_SERVER: there is no such setting" in done.stderr


def test_an_unreachable_broker_is_reported_in_one_line_within_bounded_time(unused_address: str) -> None:
    commands = [("produce", "a"), ("results",), ("topics", "create")]
    # All at the same time, since each of them only waits.
    started = [start(*words, ZIMAGE_KAFKA__BOOTSTRAP_SERVERS=unused_address) for words in commands]
    for process in started:
        done = finish(process)
        assert done.returncode == 1
        assert done.stderr.startswith(f"zimage: Kafka at {unused_address} does not answer")
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""


def test_a_file_is_sent_and_invalid_lines_are_reported() -> None:
    lines = [
        '{"prompt": "a"}',
        '{"prompt": "b", "width": 65}',
        "{",
        '{"prompt": "c", "steps": true}',
        '{"prompt": "d"}',
    ]
    with EmbeddedBroker() as broker:
        process = start(
            *("produce", "--file", "-", "--batch", "night", "--json"),
            ZIMAGE_KAFKA__BOOTSTRAP_SERVERS=broker.bootstrap_servers,
        )
        done = finish(process, "\n".join(lines))
    assert done.returncode == 1
    ids = [json.loads(line)["request_id"] for line in done.stdout.splitlines()]
    assert len(set(ids)) == 2
    assert all(each.startswith("night-") for each in ids)
    assert "line 2: width: got 65, takes a multiple of 16" in done.stderr
    assert "line 3: it is not JSON" in done.stderr
    assert "line 4: steps: got True" in done.stderr
    assert "accepted 2, failed 3" in done.stderr


def test_data_goes_to_a_pipe_while_a_terminal_shows_progress() -> None:
    terminal, ours = pty.openpty()
    with EmbeddedBroker() as broker, open(terminal, "rb", buffering=0) as screen:
        process = start(
            *("produce", "--file", "-", "--batch", "night", "--json"),
            stderr=ours,
            ZIMAGE_KAFKA__BOOTSTRAP_SERVERS=broker.bootstrap_servers,
            TERM="xterm",
        )
        os.close(ours)
        done = finish(process, '{"prompt": "a"}\n')
        assert json.loads(done.stdout)["request_id"].startswith("night-")
        shown = b""
        # Once no process has the terminal open, reading past the end raises an error.
        with contextlib.suppress(OSError):
            while b"accepted 1" not in shown and (more := screen.read(65_536)):
                shown += more
        assert b"accepted 1" in shown


def test_untrusted_bytes_are_not_written_to_a_terminal() -> None:
    screen, ours = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ZIMAGE_")}
    words = [sys.executable, "-m", "zimage_stream", "dead-letters", "show", "0:0", "--raw"]
    refused = subprocess.run(
        words, stdout=ours, stderr=subprocess.PIPE, env=inherited, timeout=120, check=False
    )
    os.close(ours)
    os.close(screen)
    assert refused.returncode == 2
    assert "write it to a file" in " ".join(refused.stderr.decode().replace("│", " ").split())


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_any_encoding_of_the_terminal_works(encoding: str) -> None:
    bucket = "é狐😀"
    env = {"PYTHONUTF8": "0", "PYTHONIOENCODING": encoding, "ZIMAGE_STORE__BUCKET": bucket}
    words = [sys.executable, "-m", "zimage_stream", "config", "show", "--changed"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ZIMAGE_")}

    def shown(*more: str) -> bytes:
        done = subprocess.run(
            [*words, *more], env={**inherited, **env}, capture_output=True, timeout=120, check=True
        )
        assert done.stderr == b""
        return done.stdout

    # JSON is read as UTF-8, whatever the terminal's encoding.
    assert json.loads(shown("--json").decode("utf-8"))["value"] == bucket
    assert "\\u72d0\\U0001f600" in shown().decode(encoding)


def test_one_prompt_prints_its_id() -> None:
    with EmbeddedBroker() as broker:
        process = start(
            *("produce", "雾中的灯塔", "--request-id", "fog", "--previews", "2"),
            ZIMAGE_KAFKA__BOOTSTRAP_SERVERS=broker.bootstrap_servers,
        )
        done = finish(process)
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        with TopicReader(kafka, Settings().topics.requests) as reader:
            reader.start()
            (request,) = (Codec().decode_request(record.value) for record in reader.read_to_end())
    assert (done.returncode, done.stdout, done.stderr) == (0, "fog\n", "")
    assert (request.request_id, request.prompt, request.previews) == ("fog", "雾中的灯塔", 2)


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.3, 0.6])
def test_ctrl_c_during_startup_exits_with_130_and_prints_nothing(
    unused_address: str, after_s: float, tmp_path: Path
) -> None:
    log = tmp_path / "stderr"
    with log.open("w") as sink:
        process = start(
            *("results", "--follow"),
            stderr=sink,
            ZIMAGE_KAFKA__BOOTSTRAP_SERVERS=unused_address,
            PYTHONPROFILEIMPORTTIME="1",
        )
    # Before our handler is installed, Python itself reports a Ctrl-C. The first import after that has been
    # logged once it is in place.
    while not re.search(r"zimage_stream\.cli\.interrupt\n.*\n", log.read_text()):
        assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(after_s)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    said = [line for line in log.read_text().splitlines() if not line.startswith("import time:")]
    assert (done.returncode, done.stdout, said) == (130, "", [])
