"""Time and size of each way to encode an image, compared with Pillow's default PNG in the same run.

The images are synthetic: noise whose power falls with its frequency as it does in photographs, in softer and
rougher variants, with the grain of a sensor.

*Engine's pace*: how fast another thread runs Python while one thread encodes image after image, relative to
running alone. It shows which encoder keeps the interpreter from the thread that feeds the device.

    python -m benchmarks.encode
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from statistics import median

import numpy
from PIL import Image

from benchmarks.report import Cell, Report, parser, publish
from zimage_stream.imaging import encode

ROUGHNESS = (1.2, 1.5, 2.0)
"""Exponents by which the amplitude falls with the frequency; photographs are near 1 to 2."""
GRAIN = 1.5
PACE_S = 0.4
TEXT = {"prompt": "a lighthouse in fog", "seed": "1"}


def main() -> None:
    options = parser(__doc__, "small images, once")
    options.add_argument("--side", type=int, default=1024, help="of the square images, in pixels")
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    side, rounds = (128, 1) if arguments.quick else (arguments.side, arguments.rounds)

    figures: dict[str, list[tuple[float, int]]] = {}
    for roughness in ROUGHNESS:
        image = photograph(side, roughness)
        for name, call in encoders(image).items():
            figures.setdefault(name, []).append(measure(call, rounds))
    image = photograph(side, ROUGHNESS[1])
    paces = {name: pace(call, rounds) for name, call in encoders(image).items()}
    base = figures["Pillow, default"]
    rows: list[list[Cell]] = []
    for name, timed in figures.items():
        shorter = median(row[0] / of[0] for row, of in zip(timed, base, strict=True))
        larger = median(row[1] / of[1] for row, of in zip(timed, base, strict=True))
        rows.append([name, median(row[0] for row in timed), shorter, larger, paces[name]])
    ours = next(row for row in rows if row[0] == "this project, png")
    findings = [
        f"A lossless PNG of {side}x{side} takes {ours[1]:.1f} ms, {ours[2]:.3f} of Pillow's default, and is "
        f"{ours[3]:.2f} times as large; meanwhile the engine thread runs at {ours[4]:.2f} of its pace."
    ]
    publish(Report(("encoder", "ms", "of default", "size", "engine's pace"), rows, findings), arguments)


def encoders(image: Image.Image) -> dict[str, Callable[[], bytes]]:
    """Calls that encode the picture, by name."""

    def pillow(level: int) -> Callable[[], bytes]:
        def call() -> bytes:
            out = io.BytesIO()
            image.save(out, "PNG", compress_level=level)
            return out.getvalue()

        return call

    return {
        "Pillow, default": pillow(6),
        "Pillow, level 4": pillow(4),
        "Pillow, level 1": pillow(1),
        "this project, png": lambda: encode(image, "png", None, TEXT).data,
        "this project, webp": lambda: encode(image, "webp", None, TEXT).data,
        "this project, jpeg": lambda: encode(image, "jpeg", None, TEXT).data,
    }


def measure(call: Callable[[], bytes], rounds: int) -> tuple[float, int]:
    """Median milliseconds, and bytes."""
    times = []
    size = 0
    for _ in range(rounds):
        started = time.perf_counter()
        size = len(call())
        times.append((time.perf_counter() - started) * 1e3)
    return median(times), size


def pace(call: Callable[[], bytes], rounds: int) -> float:
    """Python steps of this thread beside one that makes the call again and again, of its steps alone."""
    shares = []
    for _ in range(rounds):
        alone = steps()
        stop = threading.Event()

        def encode_on(stop: threading.Event = stop) -> None:
            while not stop.is_set():
                call()

        thread = threading.Thread(target=encode_on)
        thread.start()
        shares.append(steps() / alone)
        stop.set()
        thread.join()
    return median(shares)


def steps() -> int:
    """Turns of an empty loop in a fixed time."""
    count, end = 0, time.perf_counter() + PACE_S
    while time.perf_counter() < end:
        count += 1
    return count


def photograph(side: int, roughness: float) -> Image.Image:
    """A picture with the spectrum of one."""
    rng = numpy.random.default_rng(1)
    across, down = numpy.fft.rfftfreq(side)[None, :], numpy.fft.fftfreq(side)[:, None]
    frequency = numpy.hypot(across, down)
    frequency[0, 0] = 1.0
    channels = []
    for _ in range(3):
        spectrum = numpy.fft.rfft2(rng.standard_normal((side, side))) / frequency**roughness
        smooth = numpy.fft.irfft2(spectrum, s=(side, side))
        smooth = (smooth - smooth.min()) / numpy.ptp(smooth)
        channels.append(smooth * 215 + 20 + rng.normal(0.0, GRAIN, (side, side)))
    pixels = numpy.stack(channels, axis=-1).clip(0, 255).astype("uint8")
    return Image.fromarray(pixels)


if __name__ == "__main__":
    main()
