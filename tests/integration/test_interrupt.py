"""Ctrl-C ends a command even while the store does not respond."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.integration.answers import Answers, ResultWriter, succeeded
from zimage_stream import PromptRequest, Settings, Source
from zimage_stream.settings import StoreSettings, environment_of
from zimage_stream.stores import ImageStore

ENDS_WITHIN_S = 240.0
"""Without the interrupt, each download gets four tries of 30 seconds."""


@pytest.fixture
def frozen() -> Iterator[socket.socket]:
    """A store that accepts connections and never responds, like a stopped process."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        yield listening


def start(settings: Settings, frozen: socket.socket, *words: str) -> subprocess.Popen[str]:
    store = StoreSettings(
        endpoint=f"127.0.0.1:{frozen.getsockname()[1]}",
        region="us-east-1",
        access_key="a",
        secret_key=SecretStr("b"),
    )
    return subprocess.Popen(
        [sys.executable, "-m", "zimage_stream", *words],
        env=environment_of(settings.model_copy(update={"store": store})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(process: subprocess.Popen[str], frozen: socket.socket) -> tuple[str, str]:
    """Send Ctrl-C once an image is being fetched. Returns the command's output."""
    connection, _ = frozen.accept()
    with connection:
        assert connection.recv(3) == b"GET"
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=ENDS_WITHIN_S)
        finally:
            process.kill()
        assert process.returncode == 130
        return out, err


def test_ctrl_c_while_results_are_saved(
    settings: Settings, store: ImageStore, frozen: socket.socket, tmp_path: Path
) -> None:
    request = PromptRequest(prompt="a", request_id="a")
    source = Source(topic="t", partition=0, offset=0)
    ResultWriter(settings).write([succeeded(request, source, store)])
    _, err = interrupt(start(settings, frozen, "results", "--out", str(tmp_path / "out")), frozen)
    assert err == ""
    assert (tmp_path / "out" / "index.html").exists()


def test_ctrl_c_while_a_file_is_answered(
    settings: Settings, store: ImageStore, frozen: socket.socket, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt\n" + "a\n" * 100)
    words = ("produce", "--file", str(rows), "--batch", "night", "--out", str(tmp_path / "out"))
    with Answers(settings, store):
        _, err = interrupt(start(settings, frozen, *words), frozen)
    assert "to resume: zimage produce" in err
    assert (tmp_path / "out" / "index.html").exists()
