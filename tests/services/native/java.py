"""Finds a Java that is new enough, and fetches programs that need it with Maven."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.services.errors import ServiceMissingError
from tests.services.native.cache import run_tool

_DEPENDENCY_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
_INSTALLED = (Path("/usr/lib/jvm"), Path("/Library/Java/JavaVirtualMachines"))
_POM = """<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>zimage.services</groupId><artifactId>libs</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>{}</dependencies>
</project>
"""


@functools.cache
def find_java(least: int) -> Path:
    """A ``java`` program of this major version or newer, from JAVA_HOME, the PATH, or installed packages.

    Raises:
        ServiceMissingError: there is none; the message names those that are too old.
    """
    seen: dict[Path, int] = {}
    for program in _candidates():
        version = _major_version(program)
        if version >= least:
            return program
        seen[program] = version
    old = ", ".join(f"{program} is {version}" for program, version in seen.items() if version)
    raise ServiceMissingError(f"no Java {least} or newer found" + (f" ({old})" if old else ""))


def fetch_libraries(artifacts: list[str], folder: Path) -> None:
    """Put these jars and all their dependencies into ``folder``.

    Args:
        artifacts: ``group:artifact:version``.

    Raises:
        ServiceMissingError: Maven is not installed, or cannot fetch them.
    """
    names = ("groupId", "artifactId", "version")
    dependencies = "".join(
        "<dependency>"
        + "".join(f"<{name}>{part}</{name}>" for name, part in zip(names, artifact.split(":"), strict=True))
        + "</dependency>"
        for artifact in artifacts
    )
    pom = folder / "pom.xml"
    pom.write_text(_POM.format(dependencies))
    goal = f"{_DEPENDENCY_PLUGIN}:copy-dependencies"
    run_tool(["mvn", "-B", "-q", "-f", str(pom), goal, f"-DoutputDirectory={folder}"], folder)


def fetch_archive(artifact: str, folder: Path) -> None:
    """Unpack an archive into ``folder``.

    Args:
        artifact: ``group:artifact:version:type:classifier``.

    Raises:
        ServiceMissingError: Maven is not installed, or cannot fetch it.
    """
    pom = folder / "pom.xml"
    pom.write_text(_POM.format(""))
    goal = f"{_DEPENDENCY_PLUGIN}:unpack"
    options = [f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"]
    run_tool(["mvn", "-B", "-q", "-f", str(pom), goal, *options], folder)


def _candidates() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if on_path := shutil.which("java"):
        yield Path(on_path)
    for place in _INSTALLED:
        yield from sorted(place.glob("*/bin/java"))
        yield from sorted(place.glob("*/Contents/Home/bin/java"))


def _major_version(program: Path) -> int:
    """Major version of a ``java`` program; 0 if it cannot be run."""
    try:
        told = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    # openjdk version "17.0.15" 2025-04-15; before Java 9 it was "1.8.0_292".
    match = re.search(r'version "(?:1\.)?(\d+)', told.stderr)
    return int(match[1]) if match else 0
