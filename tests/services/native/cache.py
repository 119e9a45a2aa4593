"""The folder outside the tree for what was fetched and built, with one folder per package and version."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.services.errors import ServiceMissingError

_LOG_LINES = 25


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``ZIMAGE_CACHE``, else ``zimage-stream`` in the user's cache folder."""
    if own := environment.get("ZIMAGE_CACHE"):
        return Path(own).absolute()
    users = environment.get("XDG_CACHE_HOME")
    return (Path(users) if users else Path.home() / ".cache") / "zimage-stream"


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The folder ``name`` of the cache; ``build`` fills it if it does not exist.

    Safe when several processes call it at once, which wait for the one that builds, and when interrupted: the
    name appears only when the folder is complete.

    Args:
        name: name of the package, with its version.
        build: receives an empty folder to fill.

    Raises:
        ServiceMissingError: the cache cannot be written, or whatever ``build`` raises.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f".{name}.lock").open("w")
    except OSError as error:
        raise ServiceMissingError(f"the cache {folder.parent} cannot be written: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        for left_over in folder.parent.glob(f".{name}.building-*"):
            shutil.rmtree(left_over)
        building = Path(tempfile.mkdtemp(prefix=f".{name}.building-", dir=folder.parent))
        try:
            build(building)
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder


def run_tool(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a build tool in ``folder``, quietly.

    Raises:
        ServiceMissingError: the tool is not installed, or it failed; its last lines are quoted.
    """
    program = shutil.which(command[0])
    if program is None:
        raise ServiceMissingError(f"{command[0]} is not on the PATH")
    done = subprocess.run(
        [program, *command[1:]],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = "\n".join(f"  {line}" for line in done.stdout.splitlines()[-_LOG_LINES:])
        raise ServiceMissingError(f"{command[0]} failed with exit code {done.returncode}:\n{last}")


def announce(what: str) -> None:
    """Announce a slow step on stderr; pytest shows it only if a test fails."""
    sys.stderr.write(f"preparing {what} (once)\n")
