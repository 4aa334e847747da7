"""The planned load is what its config says, and the same every time."""

import math

import pytest

from bench.workload import WorkloadConfig, plan


def test_same_seed_same_load() -> None:
    config = WorkloadConfig(rate=10, num_requests=20, input_len=8, seed=3)
    assert plan(config) == plan(config)
    assert plan(config) != plan(WorkloadConfig(rate=10, num_requests=20, input_len=8, seed=4))


def test_arrivals_have_the_asked_rate() -> None:
    planned = plan(WorkloadConfig(rate=50, num_requests=5000, input_len=1))
    assert planned[0].arrival_s == 0
    assert 4999 / planned[-1].arrival_s == pytest.approx(50, rel=0.1)


def test_infinite_rate_sends_all_at_once() -> None:
    assert {request.arrival_s for request in plan(WorkloadConfig(rate=math.inf, num_requests=5))} == {0.0}


def test_prompts_share_one_of_the_prefixes() -> None:
    planned = plan(WorkloadConfig(num_requests=50, input_len=20, shared_prefix=12, num_prefixes=3, vocab_size=1000))
    prompts = [request.prompt for request in planned]
    assert all(isinstance(prompt, list) and len(prompt) == 20 and max(prompt) < 1000 for prompt in prompts)
    assert len({tuple(prompt[:12]) for prompt in prompts}) == 3
    assert len({tuple(prompt) for prompt in prompts}) == 50


def test_text_prompts_are_words() -> None:
    (request,) = plan(WorkloadConfig(num_requests=1, input_len=7, text=True))
    assert isinstance(request.prompt, str)
    assert len(request.prompt.split()) == 7


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"num_requests": 0}, {"shared_prefix": 600}, {"num_prefixes": 0}])
def test_impossible_loads_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        WorkloadConfig(**wrong)
