"""Drawing: exact sets of possible tokens, frequencies, and rows with different settings in one batch."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.core.types import Sampling, StepPlan
from engine.runtime import sampler
from engine.runtime.adjust import adjust
from engine.runtime.rows import RowTable
from engine.runtime.sampler import draw, floors, invert_cdf
from tests.unit.runtime.tiny import new_row

VOCAB = 50


def table_of(*rows: tuple[list[int], int, Sampling]) -> RowTable:
    """Rows of (tokens, num_prompt, sampling), ids and slots in order."""
    table = RowTable(max(len(rows), 1), 128, 16, 0, torch.device("cpu"))
    plan = StepPlan(0, added=[new_row(id, *row[::2], num_prompt=row[1]) for id, row in enumerate(rows)])  # type: ignore[arg-type]
    table.apply(plan)
    return table


def draw_rows(logits_SV: Tensor, settings: list[Sampling], position: int = 3) -> list[int]:
    table = table_of(*(([1, 2, 3], 3, sampling) for sampling in settings))
    slots = table.slots(list(range(len(settings))))
    return draw(logits_SV, table, slots, [position] * len(settings)).tolist()


def frequencies(logits_V: Tensor, sampling: Sampling, draws: int = 20_000) -> Tensor:
    """Shares of drawn tokens over many seeds."""
    num = 200
    settings = [replace(sampling, seed=seed) for seed in range(num)]
    table = table_of(*(([1, 2, 3], 3, one) for one in settings))
    slots = table.slots(list(range(num)))
    logits_SV = logits_V.expand(num, -1)
    drawn = [draw(logits_SV, table, slots, [position] * num) for position in range(draws // num)]
    return torch.bincount(torch.cat(drawn), minlength=len(logits_V)) / draws


def by_transformers(logits_SV: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities after transformers' warpers in transformers' order."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits_SV)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    if sampling.min_p:
        scores = MinPLogitsWarper(sampling.min_p)(None, scores)
    return scores.softmax(-1)


@pytest.fixture
def logits_SV() -> Tensor:  # noqa: N802
    return torch.randn(16, VOCAB, generator=torch.Generator().manual_seed(1)) * 3


SETTINGS = [
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_k=5),
    Sampling(top_p=0.8),
    Sampling(top_p=0.999),
    Sampling(temperature=2.0, min_p=0.1),
    Sampling(temperature=0.9, top_k=12, top_p=0.7, min_p=0.02),
    Sampling(top_k=1),
    Sampling(top_p=1e-9),
    Sampling(top_k=VOCAB + 10, top_p=0.5),
]


@pytest.mark.parametrize("candidates", [4, 256])
@pytest.mark.parametrize("sampling", SETTINGS)
def test_possible_tokens_are_those_of_transformers(
    logits_SV: Tensor, sampling: Sampling, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "NUM_CANDIDATES", candidates)
    scaled = logits_SV / sampling.temperature
    columns = [torch.full((16,), float(value)) for value in (sampling.top_k, sampling.top_p, sampling.min_p)]
    floor_S = floors(scaled, *columns, largest_k=sampling.top_k)
    assert torch.equal(scaled >= floor_S[:, None], by_transformers(logits_SV, sampling) > 0)


def test_mixed_rows_keep_their_own_sets(logits_SV: Tensor) -> None:
    fields = torch.tensor([(s.top_k, s.top_p, s.min_p) for s in SETTINGS])
    scaled = logits_SV[: len(SETTINGS)] / torch.tensor([[s.temperature] for s in SETTINGS])
    floor_S = floors(scaled, *fields.T, largest_k=max(s.top_k for s in SETTINGS))
    for row, sampling in enumerate(SETTINGS):
        possible = by_transformers(logits_SV[row : row + 1], sampling) > 0
        assert torch.equal(scaled[row : row + 1] >= floor_S[row], possible), sampling


@pytest.mark.parametrize("sampling", SETTINGS[:6])
def test_frequencies_are_the_probabilities(logits_SV: Tensor, sampling: Sampling) -> None:
    want = by_transformers(logits_SV[:1], sampling)[0]
    got = frequencies(logits_SV[0], sampling)
    assert got[want == 0].sum() == 0
    error = 5 * (want * (1 - want) / 20_000).sqrt() + 1e-9
    assert ((got - want).abs() <= error).all()


def test_mixed_batch_equals_rows_alone(logits_SV: Tensor) -> None:
    settings = [replace(s, seed=90 + i) for i, s in enumerate([*SETTINGS, Sampling(temperature=0.0, top_p=0.5)])]
    settings.append(Sampling(temperature=0.0, logit_bias=((7, 100.0),)))
    batch = logits_SV[: len(settings)]
    together = draw_rows(batch, settings)
    alone = [draw_rows(batch[row : row + 1], [sampling])[0] for row, sampling in enumerate(settings)]
    assert together == alone
    assert together[-2:] == [int(batch[-2].argmax()), 7]


def test_seed_and_position_decide(logits_SV: Tensor) -> None:
    one = [draw_rows(logits_SV[:1], [Sampling(seed=5)], position)[0] for position in range(100)]
    again = [draw_rows(logits_SV[:1], [Sampling(seed=5)], position)[0] for position in range(100)]
    other = [draw_rows(logits_SV[:1], [Sampling(seed=6)], position)[0] for position in range(100)]
    assert one == again and one != other and len(set(one)) > 3


def test_greedy_batches_skip_everything(logits_SV: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "uniform", None)
    settings = [Sampling(temperature=0.0), Sampling(temperature=1e-9, top_p=0.3)] * 8
    assert draw_rows(logits_SV, settings) == logits_SV.argmax(-1).tolist()


def test_the_draw_stops_at_the_last_possible_token() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf], [-math.inf, 0.0, 0.0]])
    almost_one = torch.full((2,), 1 - 2.0**-53, dtype=torch.float64)
    assert invert_cdf(logits, almost_one).tolist() == [1, 2]
    assert invert_cdf(logits, torch.zeros(2, dtype=torch.float64)).tolist() == [0, 1]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.5), Sampling(temperature=0.0)])
def test_broken_logits_still_give_a_token(sampling: Sampling) -> None:
    (token,) = draw_rows(torch.full((1, VOCAB), math.nan), [sampling])
    assert 0 <= token < VOCAB


def test_nearly_cold_rows_do_not_overflow(logits_SV: Tensor) -> None:
    assert draw_rows(logits_SV * 1000, [Sampling(temperature=2e-5)] * 16) == logits_SV.argmax(-1).tolist()


# ---------------------------------------------------------------- before temperature

TOKENS = [3, 4, 4, 3, 9, 9, 9, 10]  # five of the prompt, three drawn


def adjusted(logits_SV: Tensor, *settings: Sampling) -> Tensor:
    table = table_of(*((TOKENS, 5, sampling) for sampling in settings))
    before = logits_SV.clone()
    after = adjust(logits_SV, table, table.slots(list(range(len(settings)))), [len(TOKENS)] * len(settings))
    assert torch.equal(logits_SV, before)
    return after


def test_repetition_penalty_is_that_of_transformers(logits_SV: Tensor) -> None:
    got = adjusted(logits_SV[:1], Sampling(repetition_penalty=1.7))
    want = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([TOKENS]), logits_SV[:1].clone())
    torch.testing.assert_close(got, want)


def test_presence_and_frequency_count_the_output_only(logits_SV: Tensor) -> None:
    got = adjusted(logits_SV[:1], Sampling(presence_penalty=0.5, frequency_penalty=0.25))
    want = logits_SV[:1].clone()
    want[0, 9] -= 0.5 + 2 * 0.25
    want[0, 10] -= 0.5 + 0.25
    torch.testing.assert_close(got, want)


def test_bias_comes_before_penalties(logits_SV: Tensor) -> None:
    got = adjusted(logits_SV[:1], Sampling(logit_bias=((9, 50.0), (20, -100.0)), repetition_penalty=2.0))
    assert got[0, 9] == (logits_SV[0, 9] + 50) / 2
    assert got[0, 20] == logits_SV[0, 20] - 100


def test_stop_tokens_are_impossible_before_min_tokens(logits_SV: Tensor) -> None:
    early = Sampling(min_tokens=4, stop_token_ids=(1, 2))
    enough = Sampling(min_tokens=3, stop_token_ids=(1, 2))
    got = adjusted(logits_SV[:2], early, enough)
    assert got[0, [1, 2]].isinf().all() and got[0].isinf().sum() == 2
    assert torch.equal(got[1], logits_SV[1])


def test_rows_of_different_histories_are_adjusted_together(logits_SV: Tensor) -> None:
    rows = [
        ([5], 1, Sampling(frequency_penalty=1.0)),
        (TOKENS, 2, Sampling(presence_penalty=2.0)),
        ([8], 1, Sampling()),
    ]
    table = table_of(*rows)
    got = adjust(logits_SV[:3], table, table.slots([0, 1, 2]), [len(tokens) for tokens, _, _ in rows])
    want = logits_SV[:3].clone()
    want[1, [3, 4, 9, 10]] -= 2.0
    torch.testing.assert_close(got, want)
