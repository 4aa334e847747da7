"""What handing a prompt over costs its first tokens: `python -m bench.split_overhead --json`.

Two services side by side, with the same model on one thread a process: a prefill and a decode worker, and one worker
that does both. Single requests with prompts that no cache has seen go to them in turns, so that whatever else the
machine does strikes both alike. Reported are medians of the time to the first token, which the prefill worker draws,
and to the second, which needs the pages to have moved.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from baton.client import Client
from bench.shapes import write_shape
from deploy.plain import serve_plain
from engine.models.builtin import FOLDER
from engine.server.config import TRANSPORTS

LENGTHS = (256, 1024, 4096)
NUM_NEW = 3
VOCAB_SIZE = 4096
"""Of the built-in tokenizer, which the router needs and the shape has no own of."""


def write_model(shape: str, folder: Path) -> Path:
    """A folder with a shape's config, made to fit the lengths and the tokenizer, for random weights."""
    write_shape(shape, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": VOCAB_SIZE, "max_position_embeddings": max(LENGTHS) + 64}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, folder / name)
    return folder


def token_times_s(client: Client, prompt: Sequence[int]) -> tuple[float, float]:
    """Seconds from sending the request to its first and to its second token."""
    start_s = time.perf_counter()
    times: list[float] = []
    for chunk in client.stream(prompt, max_tokens=NUM_NEW, temperature=0.0, ignore_eos=True):
        times += [time.perf_counter() - start_s] * len(chunk.tokens)
    return times[0], times[1]


def measure(clients: dict[str, Client], repeats: int, seed: int) -> list[dict[str, object]]:
    """One row a length."""
    rng = random.Random(seed)
    rows: list[dict[str, object]] = []
    for length in LENGTHS:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
        for turn in range(repeats):
            order = list(clients) if turn % 2 else list(clients)[::-1]
            for name in order:
                prompt = [rng.randrange(4, VOCAB_SIZE) for _ in range(length)]
                times[name].append(token_times_s(clients[name], prompt))
        row: dict[str, object] = {"tokens": length}
        for place, what in enumerate(("ttft", "second_token")):
            medians = {name: statistics.median(each[place] for each in times[name]) for name in clients}
            row |= {f"{what}_{name}_ms": round(median * 1e3, 1) for name, median in medians.items()}
            row[f"{what}_overhead"] = round(medians["split"] / medians["colocated"] - 1, 4)
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Returns 0."""
    flags = argparse.ArgumentParser(prog="python -m bench.split_overhead", description=__doc__)
    flags.add_argument("--shape", default="cpu-20m", choices=("cpu-20m", "cpu-100m"))
    flags.add_argument("--transport", default="nixl", choices=TRANSPORTS)
    flags.add_argument("--max-step-tokens", type=int, default=2048, help="the chunk size of prefill")
    flags.add_argument("--repeats", type=int, default=5, help="of each length on each service")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--json", action="store_true", help="print only one JSON object")
    args = flags.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="baton-split-") as folder:
        model = str(write_model(args.shape, Path(folder)))
        worker = [
            "--model",
            model,
            "--random-weights",
            "--dtype",
            "float32",
            "--device",
            "cpu",
            "--kv-memory",
            "256MiB",
        ]
        worker += ["--max-step-tokens", str(args.max_step_tokens), "--transport", args.transport]
        router = ["--model", model]
        with (
            serve_plain([["decode_worker", *worker]], router) as colocated,
            serve_plain(
                [["prefill_worker", *worker], ["decode_worker", *worker]],
                [*router, "--policy", "cost_always_hand_over"],
            ) as split,
            Client(colocated.grpc) as colocated_client,
            Client(split.grpc) as split_client,
        ):
            clients = {"colocated": colocated_client, "split": split_client}
            warm = wait_until_pages_move(split_client)
            for client in clients.values():
                token_times_s(client, [5] * LENGTHS[0])
            rows = measure(clients, args.repeats, args.seed)
    report = {"shape": args.shape, "transport": args.transport, "max_step_tokens": args.max_step_tokens}
    report |= {"repeats": args.repeats, "requests_until_pages_moved": warm, "rows": rows}
    if args.json:
        print(json.dumps(report))
    else:
        for row in rows:
            print(row)
    return 0


def wait_until_pages_move(client: Client) -> int:
    """Requests sent until one was computed on one worker and decoded on the other: the pair has joined."""
    for count in range(1, 1000):
        (answer,) = client.generate([7 + count] * 40, max_tokens=2, temperature=0.0, ignore_eos=True).answers
        assert answer.timing is not None
        if answer.timing.prefill_worker != answer.timing.decode_worker:
            return count
        time.sleep(0.05)
    raise AssertionError("the workers never handed a prompt over")


if __name__ == "__main__":
    sys.exit(main())
