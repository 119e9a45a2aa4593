"""A worker with an engine of your own: everything but the making of pictures is as it is.

    python own_engine.py --slot drawings

The engine here draws each prompt as text on a background whose colour comes from the seed. The settings are
those of ``zimage worker``. Ctrl-C finishes what runs and leaves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from PIL import Image, ImageDraw

from zimage_consumers import run_worker
from zimage_stream import Engine, GenerationCancelledError, ImageSpec, load_settings


class DrawingEngine:
    """Has all that :class:`zimage_stream.Engine` asks for, and needs no device."""

    model, model_revision = "drawings", "1"

    def load(self) -> None:
        """A model would be loaded and warmed up here."""

    def generate(
        self, specs: Sequence[ImageSpec], cancelled: Callable[[], bool] = lambda: False
    ) -> list[Image.Image]:
        """One picture per spec. All of them have the same size and number of steps."""
        pictures = []
        for spec in specs:
            if cancelled():
                raise GenerationCancelledError
            colour = (spec.seed % 128, spec.seed // 128 % 128, 128)
            picture = Image.new("RGB", (spec.width, spec.height), colour)
            ImageDraw.Draw(picture).text((8, 8), spec.prompt.encode("ascii", "replace").decode(), "white")
            pictures.append(picture)
        return pictures

    def idle(self) -> None:
        """Memory could be given back here."""

    def count_tokens(self, prompt: str) -> int | None:
        """Any length will do."""
        return None

    def device_memory(self) -> Mapping[str, int]:
        """There is no device."""
        return {}

    def close(self) -> None:
        """There is nothing to release."""


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--slot", default="drawings", help="a name that no other worker has")
    words = parser.parse_args()
    engine: Engine = DrawingEngine()
    sys.exit(run_worker(load_settings(), words.slot, engine=engine))


if __name__ == "__main__":
    main()
