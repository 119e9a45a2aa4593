"""Z-Image on a GPU: images per second and time by size and batch, how busy the card is, and how far from
what its arithmetic allows.

    python benchmarks/gpu.py                          # full-size random weights: speed does not read them
    python benchmarks/gpu.py --model Tongyi-MAI/Z-Image-Turbo
    python benchmarks/gpu.py --model tiny --device cpu --sizes 64 --seconds 2   # only tries the program

Needs one NVIDIA GPU with about 24 GB free (transformer 6.2 B, text encoder 4.0 B and VAE 0.08 B parameters
in bf16 are 19 GiB). The ratio is measured time over the time of the transformer's multiplications alone
at the card's dense bf16 peak, where the card is known: 1 would be perfect.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

from zimage_stream.engines.base import ImageSpec
from zimage_stream.engines.zimage import ZImageEngine
from zimage_stream.errors import OutOfMemoryError
from zimage_stream.settings import EngineSettings

STEPS = 8
PROMPT = "a red circle on a white background"
CAPTION_TOKENS = 32
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16, from the makers' data sheets."""
NEEDS = "this needs an NVIDIA GPU with about 24 GB free and a torch built for it; there is none here"


@dataclass(frozen=True)
class Figure:
    """One size and batch. Times in seconds of a whole batch; ``busy`` as the driver tells it, 0 to 1."""

    side: int
    batch: int
    images_per_s: float
    p50_s: float
    p95_s: float
    busy: float | None
    times_the_floor: float | None


class RandomEngine(ZImageEngine):
    """The engine with the real architecture's dimensions and weights that nobody trained."""

    def _read(self) -> Any:
        with torch.device(self._device):
            torch.set_default_dtype(self._dtype)
            try:
                modules = random_modules()
            finally:
                torch.set_default_dtype(torch.float32)
        scheduler: Any = FlowMatchEulerDiscreteScheduler
        tokenizer: Any = AutoTokenizer
        tiny = Path(self._source) / "tokenizer"
        pipeline: Any = ZImagePipeline
        return pipeline(scheduler=scheduler(shift=3.0), tokenizer=tokenizer.from_pretrained(tiny), **modules)


def random_modules() -> dict[str, Any]:
    """Transformer, text encoder and VAE of the published sizes, on torch's default device."""
    transformer: Any = ZImageTransformer2DModel
    text_encoder: Any = Qwen3Model
    autoencoder: Any = AutoencoderKL
    return {
        "transformer": transformer(),
        "text_encoder": text_encoder(
            Qwen3Config(
                vocab_size=151_936,
                hidden_size=2560,
                num_hidden_layers=36,
                num_attention_heads=32,
                num_key_value_heads=8,
                head_dim=128,
                intermediate_size=9728,
            )
        ),
        "vae": autoencoder(
            in_channels=3,
            out_channels=3,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
    }


def floor_flops(side: int, batch: int, steps: int = STEPS) -> float:
    """Floating-point operations of the transformer's multiplications for a batch.

    Two for each parameter and token, and four for each pair of tokens, channel and layer of attention.
    """
    parameters, dim, layers = 6.155e9, 3840, 34
    tokens = (side // 16) ** 2 + CAPTION_TOKENS
    return batch * steps * (2 * parameters * tokens + 4 * layers * dim * tokens**2)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random", help="random, tiny, a folder or a hub id")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 768, 1024], help="sides in pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each size and batch")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print(NEEDS, file=sys.stderr)
        return 1
    card = torch.cuda.get_device_name() if asked.device == "cuda" else asked.device
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in card), None)
    kind, model = (RandomEngine, "tiny") if asked.model == "random" else (ZImageEngine, asked.model)
    engine = kind(EngineSettings(model=model, device=asked.device))
    engine.load()
    print(f"{card}, {asked.model}, {STEPS} steps, torch {torch.__version__}")
    print(f"{'size':>6}{'batch':>7}{'images/s':>10}{'p50 s':>9}{'p95 s':>9}{'busy':>7}{'x floor':>9}")
    figures = []
    for side in asked.sizes:
        for batch in asked.batches:
            figure = measure(engine, side, batch, asked.seconds, peak, asked.device)
            if figure is None:
                print(f"{side:>6}{batch:>7}  does not fit")
                break
            figures.append(figure)
            busy = "" if figure.busy is None else f"{figure.busy:.0%}"
            ratio = "" if figure.times_the_floor is None else f"{figure.times_the_floor:.2f}"
            print(
                f"{side:>6}{batch:>7}{figure.images_per_s:>10.2f}{figure.p50_s:>9.3f}"
                f"{figure.p95_s:>9.3f}{busy:>7}{ratio:>9}"
            )
    engine.close()
    if asked.json:
        shown = {"card": card, "model": asked.model, "figures": [asdict(figure) for figure in figures]}
        asked.json.write_text(json.dumps(shown, indent=2) + "\n")
    return 0


def measure(
    engine: ZImageEngine, side: int, batch: int, seconds: float, peak: float | None, device: str
) -> Figure | None:
    """Batches one after the other for so long; ``None`` where one does not fit."""
    specs = [ImageSpec(PROMPT, side, side, STEPS, 0.0, seed) for seed in range(batch)]
    times: list[float] = []
    try:
        engine.generate(specs)
        with _utilisation(device) as busy:
            began = time.perf_counter()
            while time.perf_counter() - began < seconds or len(times) < 3:
                started = time.perf_counter()
                engine.generate(specs)
                times.append(time.perf_counter() - started)
            elapsed = time.perf_counter() - began
    except OutOfMemoryError:
        return None
    cuts = quantiles(times, n=20, method="inclusive")
    floor_s = floor_flops(side, batch) / peak if peak else None
    return Figure(
        side,
        batch,
        batch * len(times) / elapsed,
        cuts[9],
        cuts[18],
        mean(busy) if busy else None,
        cuts[9] / floor_s if floor_s else None,
    )


@contextmanager
def _utilisation(device: str) -> Iterator[list[float]]:
    """Shares of time that the driver saw the card busy, twice a second."""
    shares: list[float] = []
    done = threading.Event()
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]

    def sample() -> None:
        while not done.wait(0.5):
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            if said.strip().isdecimal():
                shares.append(int(said) / 100)

    thread = threading.Thread(target=sample, daemon=True)
    if device == "cuda":
        thread.start()
    try:
        yield shares
    finally:
        done.set()
        if device == "cuda":
            thread.join()


if __name__ == "__main__":
    sys.exit(main())
