"""Can one tenant tell by the time to a first token what another has sent? `python -m bench.tenant_probe --url ...`.

In each round the victim sends a prompt. Then the probing tenant sends, in random order, that same prompt and one that
nobody ever sent; and at last its own prompt again, which shows that such a difference would be seen if there were one.
`auc` is the share of pairs (known, unknown) in which the known one was faster: 0.5 is no difference. `p` is the
probability of an auc at least so far from 0.5 when the labels mean nothing (permutations within the rounds).
"""

import json
import random
import time
from dataclasses import dataclass
from statistics import median

import httpx
import typer

VOCABULARY = 256
PERMUTATIONS = 2000


@dataclass(frozen=True, slots=True)
class Round:
    """Times to a first token, in ms."""

    known: float
    """Of a prompt that the victim has sent."""
    unknown: float
    repeated: float
    """Of one that the probe itself has sent before."""


def wins(pairs: list[tuple[float, float]]) -> float:
    """The share of pairs whose first number is the smaller one; equal ones count half."""
    return sum((a < b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def p_value(pairs: list[tuple[float, float]], rng: random.Random) -> float:
    """Two-sided, by swapping pairs at random."""
    seen = abs(wins(pairs) - 0.5)
    extreme = 0
    for _ in range(PERMUTATIONS):
        swapped = [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs]
        extreme += abs(wins(swapped) - 0.5) >= seen - 1e-12
    return (extreme + 1) / (PERMUTATIONS + 1)


def summarize(rounds: list[Round], rng: random.Random) -> dict[str, float]:
    """Medians, and both comparisons with the unknown prompts."""
    across = [(each.known, each.unknown) for each in rounds]
    own = [(each.repeated, each.unknown) for each in rounds]
    return {
        "rounds": len(rounds),
        "known_ms": median(each.known for each in rounds),
        "unknown_ms": median(each.unknown for each in rounds),
        "repeated_ms": median(each.repeated for each in rounds),
        "auc": wins(across),
        "p": p_value(across, rng),
        "own_auc": wins(own),
        "own_p": p_value(own, rng),
    }


class Prober:
    """Asks for one token at a time."""

    def __init__(self, url: str, model: str, input_len: int, rng: random.Random) -> None:
        self._url, self._model, self._input_len, self._rng = url, model, input_len, rng
        self._client = httpx.Client(timeout=60.0)

    def prompt(self) -> list[int]:
        """One that nobody has sent."""
        return [self._rng.randrange(VOCABULARY) for _ in range(self._input_len)]

    def first_token_ms(self, key: str, prompt: list[int]) -> float:
        """Raises httpx.HTTPStatusError."""
        body = {"model": self._model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        begin_s = time.perf_counter()
        answer = self._client.post(f"{self._url}/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})
        answer.raise_for_status()
        return (time.perf_counter() - begin_s) * 1e3

    def round(self, victim_key: str, probe_key: str) -> Round:
        """One of the module's text."""
        known, unknown = self.prompt(), self.prompt()
        self.first_token_ms(victim_key, known)
        order = [("known", known), ("unknown", unknown)]
        self._rng.shuffle(order)
        took = {name: self.first_token_ms(probe_key, prompt) for name, prompt in order}
        return Round(took["known"], took["unknown"], self.first_token_ms(probe_key, unknown))


def main(
    url: str = "http://127.0.0.1:8000",
    model: str = "builtin",
    victim_key: str = typer.Option(..., envvar="VICTIM_KEY"),
    probe_key: str = typer.Option(..., envvar="PROBE_KEY"),
    rounds: int = 200,
    input_len: int = 256,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line."),
) -> None:
    """Probe a running service with the keys of two tenants."""
    rng = random.Random()
    prober = Prober(url, model, input_len, rng)
    prober.round(victim_key, probe_key)  # connections and kernels
    result = summarize([prober.round(victim_key, probe_key) for _ in range(rounds)], rng)
    print(json.dumps(result) if as_json else "  ".join(f"{name} {value:.4g}" for name, value in result.items()))


if __name__ == "__main__":
    typer.run(main)
