"""The parts of the services' code that need no running service."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from tests.services.addresses import MinioAddress
from tests.services.errors import ServiceError, ServiceMissingError
from tests.services.native import cache
from tests.services.native.java import find_java
from tests.services.native.ports import free_ports
from tests.services.sources import Absence, Source, choose_source, on_absence


@pytest.mark.parametrize(
    ("given", "docker", "expected"),
    [
        ("host:1", True, Source.GIVEN),
        ("host:1", False, Source.GIVEN),
        (None, True, Source.CONTAINER),
        ("", True, Source.CONTAINER),
        (None, False, Source.NATIVE),
    ],
)
def test_the_first_available_source_is_used(given: str | None, docker: bool, expected: Source) -> None:
    assert choose_source(given, lambda: docker) is expected


def test_docker_is_not_queried_if_an_address_is_given() -> None:
    asked: list[bool] = []

    def docker_answers() -> bool:
        asked.append(True)
        return True

    choose_source("host:1", docker_answers)

    assert asked == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Absence.SKIP),
        ({"CI": ""}, Absence.SKIP),
        ({"CI": "false"}, Absence.SKIP),
        ({"CI": "true"}, Absence.FAIL),
        ({"CI": "1"}, Absence.FAIL),
    ],
)
def test_a_missing_service_is_an_error_only_in_ci(environment: dict[str, str], expected: Absence) -> None:
    assert on_absence(environment) is expected


def test_the_address_of_minio_survives_its_url() -> None:
    address = MinioAddress("127.0.0.1:9000", "key", "secret")

    assert MinioAddress.from_url(address.url) == address
    assert MinioAddress.from_url("https://k:s@store.example:443").secure


@pytest.mark.parametrize(
    "url", ["127.0.0.1:9000", "http://127.0.0.1:9000", "http://k:s@host", "ftp://k:s@h:1"]
)
def test_an_incomplete_minio_address_is_refused_with_the_expected_form(url: str) -> None:
    with pytest.raises(ServiceError, match="http://key:secret@host:port"):
        MinioAddress.from_url(url)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ports_are_below_the_ephemeral_range() -> None:
    ports = free_ports(50)

    assert len(set(ports)) == 50
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports) < lowest


def test_the_error_for_a_missing_java_names_versions_that_are_too_old() -> None:
    assert find_java(8).is_file()

    with pytest.raises(ServiceMissingError, match=r"no Java 999 .*java is \d+"):
        find_java(999)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ZIMAGE_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, Path("/own")),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/zimage-stream")),
        ({}, Path.home() / ".cache" / "zimage-stream"),
    ],
)
def test_the_cache_is_where_the_user_wants_it(environment: dict[str, str], expected: Path) -> None:
    assert cache.cache_folder(environment) == expected


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZIMAGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_concurrent_builds_run_only_once(empty_cache: Path) -> None:
    builds: list[Path] = []
    together = threading.Barrier(4)
    folders: list[Path] = []

    def build(folder: Path) -> None:
        builds.append(folder)
        (folder / "file").write_text("whole")

    def ask() -> None:
        together.wait(120)
        folders.append(cache.cached("thing-1", build))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)

    assert len(builds) == 1
    assert folders == [empty_cache / "thing-1"] * 4
    assert (empty_cache / "thing-1" / "file").read_text() == "whole"


def test_a_failed_build_leaves_nothing_behind_and_is_retried(empty_cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ServiceMissingError("no such tool")

    with pytest.raises(ServiceMissingError, match="no such tool"):
        cache.cached("thing-1", fail)
    # What a process that is killed during a build leaves behind.
    left_over = empty_cache / ".thing-1.building-killed"
    left_over.mkdir()

    cache.cached("thing-1", lambda folder: (folder / "file").touch())

    assert [path.name for path in (empty_cache / "thing-1").iterdir()] == ["file"]
    assert not left_over.exists()


def test_a_build_tool_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(ServiceMissingError, match=r"sh failed with exit code 3:\n  about here"):
        cache.run_tool(["sh", "-c", "echo about here >&2; exit 3"], tmp_path)
    with pytest.raises(ServiceMissingError, match="no-such-tool is not on the PATH"):
        cache.run_tool(["no-such-tool"], tmp_path)
