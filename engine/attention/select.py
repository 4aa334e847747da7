"""The attention backend of this device: facts gathered, the choice made (choice.py), the adapters built."""

import logging
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from engine.attention.base import AttentionBackend, AttentionShape
from engine.attention.choice import AUTO, Facts, Roles, obstacle, preferences, why_not
from engine.attention.choice import BACKENDS as NAMES
from engine.core.errors import InvalidRequest

logger = logging.getLogger(__name__)

BACKENDS = (AUTO, *NAMES)
Build = Callable[[Tensor, AttentionShape, torch.dtype], AttentionBackend]


def make_backend(
    name: str, pool_NL2SKE: Tensor, shape: AttentionShape, dtype: torch.dtype | None = None
) -> AttentionBackend:
    """The backend called `name`, or with "auto" the fastest one that serves this pool and shape.

    Args:
        dtype: of the queries; None: the pool's.

    Raises:
        InvalidRequest: the name is unknown, or that backend cannot run here; the message says why.
    """
    if name not in BACKENDS:
        message = f"attention backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}"
        raise InvalidRequest(message, param="attention_backend")
    dtype = dtype or pool_NL2SKE.dtype
    facts = gather_facts(pool_NL2SKE, shape, dtype)
    if name == AUTO:
        return _best(facts, pool_NL2SKE, shape, dtype)
    reason = obstacle(name, facts)
    if reason is not None:
        raise InvalidRequest(f"attention backend {name} {reason}", param="attention_backend")
    backend = _BUILDERS[name](pool_NL2SKE, shape, dtype)
    logger.info("attention backend %s, as asked for", name)
    return backend


def gather_facts(pool_NL2SKE: Tensor, shape: AttentionShape, dtype: torch.dtype) -> Facts:
    """What the choice depends on. Imports no vendor's package but FlashAttention-3's, and that on Hopper only."""
    device = pool_NL2SKE.device
    capability, packages = (0, 0), {"numba"} if device.type == "cpu" and _imports("numba") else set[str]()
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        packages = {name for name, package in _PACKAGES.items() if find_spec(package) is not None}
        if capability == (9, 0):
            from engine.attention.fa3_kernels import find_kernels

            packages |= {"fa3"} if find_kernels() is not None else set()
    return Facts(
        device=device.type,
        capability=capability,
        packages=frozenset(packages),
        dtype=str(dtype).removeprefix("torch."),
        kv_dtype=str(pool_NL2SKE.dtype).removeprefix("torch."),
        page_size=pool_NL2SKE.shape[3],
        head_dim=shape.head_dim,
        has_soft_cap=shape.soft_cap is not None,
    )


def _imports(package: str) -> bool:
    """Also false for one that is there and broken, for another Python or numpy."""
    try:
        import_module(package)
    except ImportError as error:
        logger.warning("%s cannot be imported: %s", package, error)
        return False
    return True


def _best(facts: Facts, pool_NL2SKE: Tensor, shape: AttentionShape, dtype: torch.dtype) -> AttentionBackend:
    refusals: list[str] = []
    for roles in preferences(facts):
        try:
            backend = _compose(roles, pool_NL2SKE, shape, dtype)
        except InvalidRequest as error:  # the package is there, but its build cannot serve this shape
            refusals.append(error.message)
            continue
        reasons = [*why_not(facts, roles), *refusals]
        logger.info("attention backend %s%s", backend.name, "".join(f"; {reason}" for reason in reasons))
        return backend
    raise AssertionError("torch and triton refuse nothing")


def _compose(roles: Roles, pool_NL2SKE: Tensor, shape: AttentionShape, dtype: torch.dtype) -> AttentionBackend:
    built = {name: _BUILDERS[name](pool_NL2SKE, shape, dtype) for name in roles.names}
    if len(built) == 1:
        return built[roles.decode]
    from engine.attention.by_phase import ByPhase

    return ByPhase(built[roles.new], built[roles.extend], built[roles.decode])


def _torch(pool_NL2SKE: Tensor, shape: AttentionShape, dtype: torch.dtype) -> AttentionBackend:
    from engine.attention.torch_ref import TorchReference

    return TorchReference(pool_NL2SKE, shape)


def _torch_cpu(pool_NL2SKE: Tensor, shape: AttentionShape, dtype: torch.dtype) -> AttentionBackend:
    from engine.attention.torch_cpu import TorchCPU

    return TorchCPU(pool_NL2SKE, shape, dtype)


def _numba(pool_NL2SKE: Tensor, shape: AttentionShape, dtype: torch.dtype) -> AttentionBackend:
    from engine.attention.torch_cpu import TorchCPU
    from engine.kernels.cpu.paged_decode import PagedDecode

    return TorchCPU(pool_NL2SKE, shape, dtype, PagedDecode(pool_NL2SKE, shape.softmax_scale))


def _triton(pool_NL2SKE: Tensor, shape: AttentionShape, dtype: torch.dtype) -> AttentionBackend:
    from engine.attention.triton import TritonAttention

    return TritonAttention(pool_NL2SKE, shape)


def _fa3(pool_NL2SKE: Tensor, shape: AttentionShape, dtype: torch.dtype) -> AttentionBackend:
    from engine.attention.fa3 import FlashAttention3
    from engine.attention.fa3_kernels import find_kernels

    kernels = find_kernels()
    assert kernels is not None, "just found"
    return FlashAttention3(pool_NL2SKE, shape, kernels)


def _fa2(pool_NL2SKE: Tensor, shape: AttentionShape, dtype: torch.dtype) -> AttentionBackend:
    from engine.attention.fa2 import FlashAttention2

    return FlashAttention2(pool_NL2SKE, shape)


def _flashinfer(pool_NL2SKE: Tensor, shape: AttentionShape, dtype: torch.dtype) -> AttentionBackend:
    from engine.attention.flashinfer import FlashInfer

    return FlashInfer(pool_NL2SKE, shape)


_BUILDERS: dict[str, Build] = {
    "fa3": _fa3,
    "fa2": _fa2,
    "flashinfer": _flashinfer,
    "triton": _triton,
    "torch": _torch,
    "torch_cpu": _torch_cpu,
    "numba": _numba,
}
_PACKAGES = {"fa2": "flash_attn", "flashinfer": "flashinfer"}
