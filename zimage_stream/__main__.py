"""``python -m zimage_stream``: the same as the command ``zimage``."""

from __future__ import annotations

from zimage_stream.cli import main

main()
