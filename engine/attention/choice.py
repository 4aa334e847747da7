"""Which attention backend serves which steps, as a function of facts. Pure.

Figures behind the order (H200, 32/8 heads of 128, bfloat16): prompts over a cached prefix run at 592 TFLOP/s with
FlashAttention-3, 509 with FlashInfer's Hopper kernels, 295 with FlashAttention-2; decode is fastest with the project's
own Triton kernel, which also is the only one that reads every kind of page.
"""

from dataclasses import dataclass

BACKENDS = ("fa3", "fa2", "flashinfer", "triton", "torch", "torch_cpu", "numba")
"""Names that can be forced."""
AUTO = "auto"

HOPPER, BLACKWELL = 9, 10
AMPERE = (8, 0)
HALVES = ("bfloat16", "float16")
FP8 = "float8_e4m3fn"
FA2_PAGE_MULTIPLE = 256
CPU_ORDER = ("numba", "torch_cpu")
FLASHINFER_HEAD_DIMS = (64, 128, 256)
VENDOR_HEAD_DIM_MAX = 256


@dataclass(frozen=True, slots=True)
class Facts:
    """What the choice depends on."""

    device: str
    """cpu or cuda."""
    capability: tuple[int, int] = (0, 0)
    """CUDA's, such as (9, 0)."""
    packages: frozenset[str] = frozenset()
    """Of fa3, fa2, flashinfer, numba: those whose packages are there."""
    dtype: str = "bfloat16"
    """Of queries; torch's name."""
    kv_dtype: str = "bfloat16"
    page_size: int = 128
    head_dim: int = 128
    has_soft_cap: bool = False


@dataclass(frozen=True, slots=True)
class Roles:
    """Backends by kind of step. `new`: prompts without cached tokens; `extend`: all others but decode."""

    new: str
    extend: str
    decode: str

    @property
    def names(self) -> tuple[str, ...]:
        """Each backend once."""
        return tuple(dict.fromkeys((self.new, self.extend, self.decode)))


def obstacle(name: str, facts: Facts) -> str | None:
    """Why the backend cannot run every step here, to follow its name; None when it can."""
    if name == "torch":
        return None
    if name == "torch_cpu":
        fits = facts.device == "cpu" and not facts.has_soft_cap
        return None if fits else "needs a CPU and a model without soft cap"
    if name == "numba":
        return _numba(facts)
    if facts.device != "cuda":
        return "needs a CUDA device"
    if name == "triton":
        return None
    reasons = {"fa3": _fa3, "fa2": _fa2, "flashinfer": _flashinfer}[name](facts)
    if not reasons and name not in facts.packages:
        reasons = [f"needs {PACKAGES[name]}"]
    return reasons[0] if reasons else None


PACKAGES = {
    "fa3": "one of the packages flash_attn_interface, flash_attn_3, sgl_kernel, vllm",
    "fa2": "the package flash_attn",
    "flashinfer": "the package flashinfer",
    "numba": "the package numba",
}


def preferences(facts: Facts) -> list[Roles]:
    """What auto takes, best first. A backend's own build may still refuse; then the next one is tried."""
    if facts.device != "cuda":
        return [Roles(*[name] * 3) for name in (*CPU_ORDER, "torch") if obstacle(name, facts) is None]
    if facts.kv_dtype != facts.dtype:
        # Only Triton's kernel converts what it reads, but new prompts need not read pages.
        with_pages = _with_plain_pages(facts)
        candidates = [Roles(name, "triton", "triton") for name in _order(facts) if name != "flashinfer"]
        found = [roles for roles in candidates if obstacle(roles.new, with_pages) is None]
    else:
        candidates = [Roles(name, name, "triton") for name in _order(facts)]
        found = [roles for roles in candidates if obstacle(roles.extend, facts) is None]
    return [*found, Roles("triton", "triton", "triton")]


def why_not(facts: Facts, chosen: Roles) -> list[str]:
    """One reason for each of them that auto did not take."""
    order, reasons = _order(facts), []
    for name in order:
        if name in chosen.names:
            continue
        reason = obstacle(name, facts)
        before = [other for other in order[: order.index(name)] if other in chosen.names]
        reasons.append(f"{name} {reason or (f'is slower here than {before[0]}' if before else 'refused')}")
    return reasons


def _order(facts: Facts) -> tuple[str, ...]:
    """Backends that need a package or special facts, fastest for prompts first."""
    if facts.device != "cuda":
        return CPU_ORDER
    if facts.capability[0] == HOPPER:
        return ("fa3", "flashinfer", "fa2")
    if facts.capability[0] >= BLACKWELL:
        return ("flashinfer", "fa2", "fa3")
    return ("fa2", "flashinfer", "fa3")


def _with_plain_pages(facts: Facts) -> Facts:
    """The same facts for steps that read no pages."""
    return Facts(
        facts.device, facts.capability, facts.packages, facts.dtype, facts.dtype, FA2_PAGE_MULTIPLE, facts.head_dim
    )


def _numba(facts: Facts) -> str | None:
    if facts.device != "cpu" or facts.has_soft_cap:
        return "needs a CPU and a model without soft cap"
    if facts.kv_dtype not in ("float32", "bfloat16") or facts.kv_dtype != facts.dtype:
        return "needs a KV dtype of float32 or bfloat16 that is the model's"
    return None if "numba" in facts.packages else f"needs {PACKAGES['numba']}"


def _fa3(facts: Facts) -> list[str]:
    checks = (
        (facts.capability == (HOPPER, 0), "needs a Hopper GPU"),
        (facts.dtype in HALVES, "needs bfloat16 or float16"),
        (facts.kv_dtype in (facts.dtype, FP8), f"needs KV pages of the model's {facts.dtype} or of {FP8}"),
        (facts.head_dim <= VENDOR_HEAD_DIM_MAX, f"has head dims up to {VENDOR_HEAD_DIM_MAX}"),
    )
    return [reason for holds, reason in checks if not holds]


def _fa2(facts: Facts) -> list[str]:
    checks = (
        (facts.capability >= AMPERE, "needs an Ampere GPU or a later one"),
        (facts.dtype in HALVES, "needs bfloat16 or float16"),
        (facts.kv_dtype == facts.dtype, f"needs KV pages of the model's {facts.dtype}"),
        (
            facts.page_size % FA2_PAGE_MULTIPLE == 0,
            f"needs pages of a multiple of {FA2_PAGE_MULTIPLE} tokens, not {facts.page_size}",
        ),
        (facts.head_dim <= VENDOR_HEAD_DIM_MAX, f"has head dims up to {VENDOR_HEAD_DIM_MAX}"),
    )
    return [reason for holds, reason in checks if not holds]


def _flashinfer(facts: Facts) -> list[str]:
    checks = (
        (facts.capability >= AMPERE, "needs an Ampere GPU or a later one"),
        (facts.dtype in HALVES, "needs bfloat16 or float16"),
        (facts.kv_dtype == facts.dtype, f"needs KV pages of the model's {facts.dtype}"),
        (
            facts.head_dim in FLASHINFER_HEAD_DIMS,
            f"has head dims {', '.join(map(str, FLASHINFER_HEAD_DIMS))}, not {facts.head_dim}",
        ),
    )
    return [reason for holds, reason in checks if not holds]
