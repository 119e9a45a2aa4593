"""Health and metrics as a probe and a scraper see them."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from tests.fleet.workers import until
from tests.hostile import HOSTILE, assert_harmless
from zimage_stream.errors import SettingsError
from zimage_stream.telemetry.health import HEARTBEAT_BOUND_S, Health
from zimage_stream.telemetry.metrics import HealthCollector, Metrics
from zimage_stream.telemetry.server import Server, serve


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def server(health: Health, registry: CollectorRegistry) -> Iterator[Server]:
    with serve(health, registry, "127.0.0.1", 0) as server:
        yield server


def ask(server: Server, path: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def ask_json(server: Server, path: str) -> tuple[int, object]:
    status, kind, body = ask(server, path)
    assert kind == "application/json"
    return status, json.loads(body)


def test_readyz_states_the_reasons(server: Server, health: Health) -> None:
    assert ask_json(server, "/readyz") == (503, {"ready": False, "reasons": ["the model is loading"]})
    health.set_started()
    assert ask_json(server, "/readyz?verbose") == (200, {"ready": True, "reasons": []})
    health.hold("engine", "显卡 is sick")
    assert ask_json(server, "/readyz") == (503, {"ready": False, "reasons": ["显卡 is sick"]})


def test_reasons_are_escaped_and_show_no_password(server: Server, health: Health) -> None:
    health.set_started()
    health.down("registry", "the registry at http://me:hunter2@registry:8081 does not answer")
    health.hold("record", HOSTILE)
    status, _, body = ask(server, "/readyz")
    assert status == 503
    shown = assert_harmless(body)
    assert "http://********@registry:8081 does not answer" in shown
    assert json.loads(shown)["reasons"][1] == HOSTILE


def test_healthz_does_not_depend_on_other_services(server: Server, health: Health, clock: Clock) -> None:
    health.set_started()
    health.down("kafka", "gone")
    assert ask_json(server, "/healthz") == (200, {"alive": True})
    clock.now += HEARTBEAT_BOUND_S
    assert ask_json(server, "/healthz") == (503, {"alive": False})


def test_metrics_are_in_the_prometheus_format(
    server: Server, registry: CollectorRegistry, health: Health
) -> None:
    Metrics(registry).results.labels("SUCCEEDED").inc()
    registry.register(HealthCollector(health))
    health.down("store", "gone")
    status, kind, body = ask(server, "/metrics")
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    lines = body.decode().splitlines()
    assert 'zimage_results_total{status="SUCCEEDED"} 1.0' in lines
    assert 'zimage_dependency_up{dependency="store"} 0.0' in lines
    assert "zimage_ready 0.0" in lines


@pytest.mark.parametrize("path", ["/", "/healthz/", "/../readyz"])
def test_other_paths_do_not_exist(server: Server, path: str) -> None:
    status, body = ask_json(server, path)
    assert status == 404
    assert "/readyz" in str(body)


def test_a_port_in_use_is_named(server: Server) -> None:
    with pytest.raises(SettingsError, match=f"ZIMAGE_TELEMETRY__PORT.*{server.port}"):
        serve(Health(), CollectorRegistry(), "127.0.0.1", server.port)


def test_a_closed_server_leaves_no_thread_or_socket(health: Health, registry: CollectorRegistry) -> None:
    server = serve(health, registry, "127.0.0.1", 0)
    server.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "health"]
    with pytest.raises(ConnectionRefusedError):
        ask(server, "/healthz")


def test_a_client_that_hangs_or_disconnects_affects_no_other(
    server: Server, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = threading.active_count()
    with socket.create_connection(("127.0.0.1", server.port)), caplog.at_level(logging.DEBUG):
        rude = socket.create_connection(("127.0.0.1", server.port))
        # This option resets the connection on close, while the server is using it.
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        rude.sendall(b"GET /healthz")
        until(lambda: threading.active_count() >= before + 2, 10, "both are being served")
        rude.close()
        until(lambda: threading.active_count() == before + 1, 10, "the connection that was reset is gone")
        assert ask(server, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""
    assert caplog.records == []
