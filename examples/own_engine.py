"""A worker with your own engine: only the generation of images is replaced.

    python own_engine.py --slot drawings

This engine draws each prompt as text on a background whose colour depends on the seed. The settings are those
of ``zimage worker``. Ctrl-C finishes the running batch and leaves the group.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from PIL import Image, ImageDraw

from zimage_consumers import run_worker
from zimage_stream import Engine, GenerationCancelledError, ImageSpec, load_settings


class DrawingEngine:
    """Implements :class:`zimage_stream.Engine` without a device."""

    model, model_revision = "drawings", "1"

    def load(self) -> None:
        """Do nothing; a model would be loaded and warmed up here."""

    def generate(
        self, specs: Sequence[ImageSpec], cancelled: Callable[[], bool] = lambda: False
    ) -> list[Image.Image]:
        """Draw one image per spec. All specs have the same size and number of steps."""
        images = []
        for spec in specs:
            if cancelled():
                raise GenerationCancelledError
            colour = (spec.seed % 128, spec.seed // 128 % 128, 128)
            image = Image.new("RGB", (spec.width, spec.height), colour)
            ImageDraw.Draw(image).text((8, 8), spec.prompt.encode("ascii", "replace").decode(), "white")
            images.append(image)
        return images

    def idle(self) -> None:
        """Do nothing; memory could be released here."""

    def count_tokens(self, prompt: str) -> int | None:
        """Return None: prompts of any length are accepted."""
        return None

    def device_memory(self) -> Mapping[str, int]:
        """Return nothing: there is no device."""
        return {}

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--slot", default="drawings", help="a name that no other worker uses")
    options = parser.parse_args()
    engine: Engine = DrawingEngine()
    sys.exit(run_worker(load_settings(), options.slot, engine=engine))


if __name__ == "__main__":
    main()
