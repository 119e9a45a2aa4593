"""A proxy in the environment is used where users expect it, and named in errors that it may cause."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import proxy_bypass

import pytest

from tests.commands import Start
from tests.services import MinioAddress, RegistryAddress
from zimage_stream.errors import RegistryUnavailableError
from zimage_stream.events.registry import Registry
from zimage_stream.proxies import exclude_this_machine, proxy_note
from zimage_stream.settings import RegistrySettings
from zimage_stream.stores import create_store


class Proxy(ThreadingHTTPServer):
    """Refuses everything, as a corporate proxy may."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Refusal)
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://me:hunter2@127.0.0.1:{self.server_port}"


class Refusal(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Proxy)
        self.server.asked.append(self.path)
        self.send_response(403)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"refused")

    do_POST = do_PUT = do_HEAD = do_CONNECT = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Proxy() as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,)).start()
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        yield proxy
        proxy.shutdown()


def test_an_error_behind_a_proxy_names_the_proxy_and_the_remedy(proxy: Proxy) -> None:
    registry = Registry(RegistrySettings(url="http://registry.invalid:8081"))
    with pytest.raises(RegistryUnavailableError) as caught:
        registry.schema(1)
    registry.close()
    said = str(caught.value)
    assert proxy.asked
    assert f"through the proxy http://********@127.0.0.1:{proxy.server_port} in HTTP_PROXY" in said
    assert "add registry.invalid to NO_PROXY" in said
    assert "403" in said
    assert "hunter2" not in said


def test_commands_connect_to_this_machine_directly(
    proxy: Proxy, start: Start, registry: RegistryAddress, tmp_path: Path
) -> None:
    config = tmp_path / "zimage.toml"
    config.write_text(f"[registry]\nurl = '{registry.url}'\nauto_register = true\n", encoding="utf-8")
    process = start("--config", str(config), "produce", "a", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["request_id"]
    assert proxy.asked == []


def test_the_store_is_never_reached_through_it(proxy: Proxy, minio: MinioAddress, bucket: str) -> None:
    store = create_store(minio.settings(bucket))
    store.check()
    store.close()
    assert proxy.asked == []


@pytest.mark.parametrize("left_out", ["", "example.org", " example.org , localhost"])
def test_this_machine_is_added_to_no_proxy(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    environment = {"HTTP_PROXY": proxy.url, "NO_PROXY": left_out}
    exclude_this_machine(environment)
    assert environment["NO_PROXY"] == environment["no_proxy"]
    monkeypatch.setenv("NO_PROXY", environment["NO_PROXY"])
    monkeypatch.setenv("no_proxy", environment["no_proxy"])
    assert all(proxy_bypass(host) for host in ("localhost", "127.0.0.1", "::1"))
    assert bool(proxy_bypass("example.org")) == bool(left_out)
    assert proxy_note("http://127.0.0.1:8081") == ""
    assert proxy_note("https://elsewhere:8081").startswith(" (through the proxy http://********@")


@pytest.mark.parametrize("environment", [{}, {"NO_PROXY": "a"}, {"HTTP_PROXY": "http://p", "NO_PROXY": "*"}])
def test_without_a_proxy_nothing_is_changed(environment: dict[str, str]) -> None:
    before = dict(environment)
    exclude_this_machine(environment)
    assert environment == before
