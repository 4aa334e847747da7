"""Command line: make the corpus, train on it."""

import argparse
import json
import logging
import sys
from pathlib import Path

import torch

from engine.models.train_builtin.corpus import write_corpus
from engine.models.train_builtin.train import Recipe, train


def main() -> None:
    """Run one of the two commands."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(prog="python -m engine.models.train_builtin", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("corpus", help="collect documentation on this machine")
    corpus.add_argument("--out", type=Path, required=True, help="a .jsonl.gz file; the manifest is written beside it")
    run = commands.add_parser("train", help="train on a corpus")
    run.add_argument("--corpus", type=Path, required=True)
    run.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and training.json")
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    defaults = Recipe()
    run.add_argument("--seconds", type=float, default=defaults.seconds, help="budget of the training loop")
    run.add_argument("--steps", type=int, default=defaults.steps)
    run.add_argument("--step-tokens", type=int, default=defaults.step_tokens)
    run.add_argument("--context", type=int, default=defaults.context)
    run.add_argument("--peak-lr", type=float, default=defaults.peak_lr)
    args = parser.parse_args()
    if args.command == "corpus":
        report = write_corpus(args.out)
    else:
        recipe = Recipe(
            seconds=args.seconds,
            steps=args.steps,
            step_tokens=args.step_tokens,
            context=args.context,
            peak_lr=args.peak_lr,
        )
        report = train(args.corpus, args.out, torch.device(args.device), recipe)
        del report["curve"]
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
