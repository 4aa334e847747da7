"""8-bit weights on a GPU: products against float64, and the engine with them."""

from array import array
from pathlib import Path

import pytest
import torch

from engine.core.types import Request, Sampling
from engine.kernels.fp8 import quantize, scaled_product, silu_mul_quantize
from engine.kernels.linear_small import linear_small
from engine.models.fp8 import quantize_rows
from engine.runtime.build import Engine
from engine.runtime.config import Formats, Launching
from tests.gpu.test_engine import engine_of, generate, prompts
from tests.gpu.test_engine import folder as folder
from tests.unit.kernels.test_kernels import check_rope_into_8_bit_pages

PRODUCTS = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
WEIGHT_BOUND = 3e-2
"""Weights rounded to 3 bits of mantissa, relative L2 of a product: 2^-4 / sqrt(3) / sqrt(2) = 2.6e-2 on average."""
BOTH_BOUND = 4.5e-2
"""The activations as well: sqrt(2) times that."""

FAST_SUMS_BOUND = 1.5e-2
"""Sums of up to 14,336 products in the tensor cores' own, short accumulators (use_fast_accum)."""


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("rows", [1, 3, 16, 32])
@pytest.mark.parametrize(("features", "width"), PRODUCTS)
def test_few_rows(rows: int, features: int, width: int) -> None:
    x, weight = torch.randn(rows, width, device="cuda").bfloat16(), torch.randn(features, width, device="cuda") * 0.02
    values, scale = quantize_rows(weight)
    residual = torch.randn(rows, features, device="cuda").bfloat16()
    exact = x.double() @ (values.double() * scale.double()[:, None]).T
    assert relative(linear_small(x, values, scale_N=scale), exact) < 4e-3, "against the rounded weight"
    assert relative(linear_small(x, values, scale_N=scale), x.double() @ weight.double().T) < WEIGHT_BOUND
    with_residual = linear_small(x, values, scale_N=scale, residual_MN=residual)
    assert relative(with_residual, exact + residual.double()) < 4e-3
    gate, up = exact.chunk(2, 1)
    activated = linear_small(x, values, scale_N=scale, silu_mul=True)
    assert relative(activated, torch.nn.functional.silu(gate) * up) < 8e-3


@pytest.mark.parametrize("rows", [1, 33, 128, 1000])
@pytest.mark.parametrize(("features", "width"), PRODUCTS)
def test_many_rows(rows: int, features: int, width: int) -> None:
    x, weight = torch.randn(rows, width, device="cuda").bfloat16(), torch.randn(features, width, device="cuda") * 0.02
    values, scale = quantize_rows(weight)
    bias = torch.randn(features, device="cuda").bfloat16()
    out = scaled_product(x, values, scale, bias)
    assert out.dtype == torch.bfloat16
    assert relative(out, x.double() @ weight.double().T + bias.double()) < BOTH_BOUND
    x8 = quantize(x)
    exact = (x8.values_TI.double() * x8.scale_T1.double()) @ (values.double() * scale.double()[:, None]).T
    assert relative(scaled_product(x8, values, scale), exact) < FAST_SUMS_BOUND, "against the rounded operands"


@pytest.mark.parametrize("width", [96, 4096, 14336])
def test_activations(width: int) -> None:
    gate_up = torch.randn(65, 2 * width, device="cuda").bfloat16()
    gate, up = gate_up.chunk(2, 1)
    for x8, expected in (
        (quantize(gate.contiguous()), gate.double()),
        (silu_mul_quantize(gate_up), torch.nn.functional.silu(gate.double()) * up.double()),
    ):
        assert relative(x8.values_TI.double() * x8.scale_T1.double(), expected) < WEIGHT_BOUND


def test_rope_writes_8_bit_pages() -> None:
    check_rope_into_8_bit_pages("cuda", rounding=1 / 16)


@pytest.mark.parametrize(
    ("formats", "bound"), [(Formats(quantization="fp8"), 0.5), (Formats(kv_dtype="fp8_e4m3"), 0.25)]
)
def test_logits_stay_near_those_of_16_bits(folder: Path, formats: Formats, bound: float) -> None:
    """The drawn tokens' log probabilities and the logits' order, not bit for bit: on the same forced continuation.

    A random model of 12 layers amplifies what is rounded. The same rounding in float32 on a CPU gives 0.32 of the
    spread for the weights alone and 0.40 for weights and activations; an H200 gave 0.44.
    """
    reports = []
    for each in (Formats(), formats):
        engine = engine_of(folder, dtype="bfloat16", formats=each)
        sampling = Sampling(max_tokens=1, temperature=0.0, num_prompt_logprobs=0)
        reports.append(prompt_logprobs(engine, sampling))
        engine.close()
    plain, rounded = (torch.tensor(report) for report in reports)
    error = float((plain - rounded).abs().mean() / plain.std())
    assert error < bound, f"mean error of a prompt token's log probability is {error:.3f} of their spread"


def prompt_logprobs(engine: Engine, sampling: Sampling) -> list[float]:
    """Of every prompt token but the first, all prompts at once."""
    found: dict[int, list[float]] = {}
    core = engine.core
    for id, tokens in enumerate(prompts()):
        core.submit(Request(id, array("i", tokens), len(tokens), sampling, 0.0, 1e9))
    left = len(prompts())
    while left:
        result = core.step(0.0)
        for id, values in result.prompt_logprobs:
            found.setdefault(id, []).extend(value.logprob for value in values)
        left -= len(result.finished)
    return [value for id in sorted(found) for value in found[id]]


def test_everything_in_8_bits_at_once(folder: Path) -> None:
    """Graphs and launches agree bit for bit with 8-bit weights and pages too."""
    greedy = Sampling(max_tokens=24, temperature=0.0)
    answers = []
    for decode_graphs in (True, False):
        engine = engine_of(
            folder,
            dtype="bfloat16",
            formats=Formats("fp8_e4m3", "fp8"),
            launching=Launching(decode_graphs=decode_graphs),
        )
        assert engine.pool.layout.dtype == "float8_e4m3fn"
        answers.append([generate(engine, prompts()[:count], greedy) for count in (1, 3, 9)])
        engine.close()
    assert answers[0] == answers[1]
