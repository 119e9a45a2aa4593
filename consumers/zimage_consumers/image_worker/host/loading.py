"""Limits how many workers load their models at the same time.

A model passes through the host's memory on its way to the device. If eight workers did that at once on a
machine with memory for two, the kernel would kill some of them, again and again.
"""

from __future__ import annotations

from pathlib import Path

from zimage_stream.settings import EngineSettings

_WEIGHTS = ("*.safetensors", "*.bin")
_CGROUP = Path("/sys/fs/cgroup")


def may_load(loading: int, weights: int | None, available: int | None) -> bool:
    """Whether one more worker may start loading. Pure.

    One always may: no other worker could load it with less. More may as long as there is room for all that
    are loading, even if none of them has read a byte yet.

    Args:
        loading: number of workers that are loading now.
        weights: bytes of one model; ``None`` while unknown, for instance before a download.
        available: bytes of host memory available; ``None`` where the system does not report it.
    """
    if loading == 0 or weights == 0:
        return True
    return weights is not None and available is not None and (loading + 1) * weights <= available


def weights_bytes(engine: EngineSettings) -> int | None:
    """Size of the engine's weights on disk in bytes; ``None`` where they are not there yet."""
    if engine.kind == "simulated":
        return 0
    folder = _folder(engine)
    if folder is None:
        return None
    return sum(file.stat().st_size for pattern in _WEIGHTS for file in folder.rglob(pattern))


def available_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int | None:
    """Bytes of host memory available without swapping, within the limits of our control group."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return available  # no limit: the file is not there, or says "max"
    # Cached files count as used, but are evicted on demand.
    return min(available, limit - used + int(stat.get("inactive_file", 0)))


def _folder(engine: EngineSettings) -> Path | None:
    from zimage_stream.engines import tiny

    if engine.model == "tiny":
        return Path(tiny.__file__).parent
    if Path(engine.model).is_dir():
        return Path(engine.model)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return None  # the worker will report what is not installed
    try:
        return Path(snapshot_download(engine.model, revision=engine.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
