"""How many workers may load their models at the same time.

A model goes through the host's memory on its way to the device. Eight workers that all do that at once
on a machine with memory for two would have the kernel kill some of them, again and again.
"""

from __future__ import annotations

from pathlib import Path

from zimage_stream.settings import EngineSettings

_WEIGHTS = ("*.safetensors", "*.bin")
_CGROUP = Path("/sys/fs/cgroup")


def may_load(loading: int, weights: int | None, available: int | None) -> bool:
    """Whether one worker more may begin to load. Pure.

    One always may: nobody else could load it with less. More may as long as there is room for all that
    load, even if none of them has read a byte yet.

    Args:
        loading: workers that have begun and not ended.
        weights: bytes of one model, ``None`` where that is not known yet, as before a download.
        available: bytes of host memory that can be had, ``None`` where the system does not say.
    """
    if loading == 0 or weights == 0:
        return True
    return weights is not None and available is not None and (loading + 1) * weights <= available


def weights_bytes(engine: EngineSettings) -> int | None:
    """Size of the engine's weights on disk, ``None`` where they are not there yet."""
    if engine.kind == "simulated":
        return 0
    folder = _folder(engine)
    if folder is None:
        return None
    return sum(file.stat().st_size for pattern in _WEIGHTS for file in folder.rglob(pattern))


def available_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int | None:
    """Host memory that can be had without swapping, within the limits of our control group."""
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
    # Cached files count as used and give way.
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
        return None  # the worker will say what is not installed
    try:
        return Path(snapshot_download(engine.model, revision=engine.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
