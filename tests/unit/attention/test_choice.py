"""The choice of backends as a function of facts."""

from dataclasses import replace

import pytest

from engine.attention.choice import BACKENDS, Facts, Roles, obstacle, preferences, why_not

ALL = frozenset(("fa3", "fa2", "flashinfer"))
HOPPER = Facts("cuda", (9, 0), ALL)
AMPERE, ADA, BLACKWELL = (replace(HOPPER, capability=each) for each in ((8, 0), (8, 9), (10, 0)))
FP8 = "float8_e4m3fn"


@pytest.mark.parametrize(
    ("facts", "best"),
    [
        (HOPPER, Roles("fa3", "fa3", "triton")),
        (replace(HOPPER, packages=frozenset(("fa2", "flashinfer"))), Roles("flashinfer", "flashinfer", "triton")),
        (replace(HOPPER, packages=frozenset(("fa2",)), page_size=256), Roles("fa2", "fa2", "triton")),
        (replace(HOPPER, packages=frozenset(("fa2",))), Roles("triton", "triton", "triton")),
        (replace(HOPPER, packages=frozenset()), Roles("triton", "triton", "triton")),
        (replace(HOPPER, dtype="float32", kv_dtype="float32"), Roles("triton", "triton", "triton")),
        (replace(HOPPER, kv_dtype=FP8), Roles("fa3", "triton", "triton")),
        (replace(AMPERE, kv_dtype=FP8), Roles("fa2", "triton", "triton")),
        (AMPERE, Roles("flashinfer", "flashinfer", "triton")),
        (replace(AMPERE, page_size=256), Roles("fa2", "fa2", "triton")),
        (replace(ADA, page_size=512), Roles("fa2", "fa2", "triton")),
        (replace(ADA, head_dim=96), Roles("triton", "triton", "triton")),
        (BLACKWELL, Roles("flashinfer", "flashinfer", "triton")),
        (replace(BLACKWELL, packages=frozenset()), Roles("triton", "triton", "triton")),
        (replace(HOPPER, capability=(7, 5)), Roles("triton", "triton", "triton")),
        (Facts("cpu", dtype="float32", kv_dtype="float32"), Roles("torch_cpu", "torch_cpu", "torch_cpu")),
        (Facts("cpu", packages=frozenset(("numba",))), Roles("numba", "numba", "numba")),
        (Facts("cpu", packages=frozenset(("numba",)), kv_dtype=FP8), Roles("torch_cpu", "torch_cpu", "torch_cpu")),
        (Facts("cpu", dtype="float32", kv_dtype=FP8), Roles("torch_cpu", "torch_cpu", "torch_cpu")),
        (Facts("cpu", has_soft_cap=True), Roles("torch", "torch", "torch")),
    ],
)
def test_auto(facts: Facts, best: Roles) -> None:
    assert preferences(facts)[0] == best


def test_auto_always_ends_with_what_nothing_can_refuse() -> None:
    assert preferences(HOPPER)[-1] == Roles("triton", "triton", "triton")
    assert preferences(Facts("cpu"))[-1] == Roles("torch", "torch", "torch")


@pytest.mark.parametrize(
    ("name", "facts", "reason"),
    [
        ("fa3", AMPERE, "needs a Hopper GPU"),
        ("fa3", replace(HOPPER, packages=frozenset()), "needs one of the packages flash_attn_interface"),
        ("fa3", replace(HOPPER, dtype="float32", kv_dtype="float32"), "needs bfloat16 or float16"),
        ("fa3", replace(HOPPER, head_dim=512), "has head dims up to 256"),
        ("fa2", HOPPER, "needs pages of a multiple of 256 tokens, not 128"),
        ("fa2", replace(HOPPER, page_size=256, kv_dtype=FP8), "needs KV pages of the model's bfloat16"),
        ("fa2", replace(HOPPER, page_size=256, packages=frozenset()), "needs the package flash_attn"),
        ("fa2", replace(HOPPER, capability=(7, 5)), "needs an Ampere GPU or a later one"),
        ("flashinfer", replace(HOPPER, head_dim=96), "has head dims 64, 128, 256, not 96"),
        ("triton", Facts("cpu"), "needs a CUDA device"),
        ("torch_cpu", HOPPER, "needs a CPU and a model without soft cap"),
        ("torch_cpu", Facts("cpu", has_soft_cap=True), "needs a CPU and a model without soft cap"),
    ],
)
def test_why_a_backend_cannot_run(name: str, facts: Facts, reason: str) -> None:
    found = obstacle(name, facts)
    assert found is not None and found.startswith(reason)


@pytest.mark.parametrize("name", BACKENDS)
def test_on_a_full_hopper_every_backend_but_the_cpus_runs(name: str) -> None:
    assert (obstacle(name, replace(HOPPER, page_size=256)) is None) == (name not in ("torch_cpu", "numba"))


def test_fa3_can_be_forced_on_8_bit_pages() -> None:
    assert obstacle("fa3", replace(HOPPER, kv_dtype=FP8)) is None


def test_the_log_says_why_others_were_not_taken() -> None:
    assert why_not(HOPPER, preferences(HOPPER)[0]) == [
        "flashinfer is slower here than fa3",
        "fa2 needs pages of a multiple of 256 tokens, not 128",
    ]
    assert why_not(AMPERE, Roles("triton", "triton", "triton")) == [
        "fa2 needs pages of a multiple of 256 tokens, not 128",
        "flashinfer refused",
        "fa3 needs a Hopper GPU",
    ]
