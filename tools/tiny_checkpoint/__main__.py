"""`python -m tools.tiny_checkpoint --help`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path


def main() -> None:
    """Run one stage of building the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_checkpoint", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("out/tiny"), help="folder for the output")
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("tokenizer", help="learn byte pairs from captions")
    stages.add_parser("vae", help="train the autoencoder").add_argument("--steps", type=int, default=3000)
    model = stages.add_parser("model", help="train transformer and text encoder")
    model.add_argument("--steps", type=int, default=4500)
    model.add_argument("--examples", type=int, default=40_000)
    stages.add_parser("evaluate", help="accuracy, and a contact sheet").add_argument(
        "--count", type=int, default=512
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    # Each stage imports only what it needs: the models take seconds to import.
    match options.stage:
        case "tokenizer":
            from tools.tiny_checkpoint.models import build_tokenizer

            build_tokenizer(work / "tokenizer")
        case "vae":
            from tools.tiny_checkpoint.train_vae import train_vae

            train_vae(options.steps, work / "vae")
        case "model":
            from tools.tiny_checkpoint.train_model import Trainer

            trainer = Trainer(work / "tokenizer", work / "vae", options.examples)
            trainer.train(options.steps)
            trainer.save(work / "checkpoint")
        case "evaluate":
            from tools.tiny_checkpoint.evaluate import evaluate

            evaluate(work / "checkpoint", options.count, work / "sheet.png")


if __name__ == "__main__":
    main()
