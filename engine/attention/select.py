"""Which attention backend runs on this device. Each adapter is imported only when it is chosen."""

import torch
from torch import Tensor

from engine.attention.base import AttentionBackend, AttentionShape
from engine.core.errors import InvalidRequest

BACKENDS = ("auto", "fa3", "triton", "torch", "torch_cpu")


def make_backend(name: str, pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    """The backend called `name`, or with "auto" the fastest one that serves this pool and shape.

    Raises:
        InvalidRequest: the name is unknown, or that backend cannot run here; the message says why.
    """
    if name not in BACKENDS:
        raise InvalidRequest(f"attention backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if name == "auto":
        return _fastest(pool_NL2SKE, shape)
    if name == "fa3":
        return _fa3(pool_NL2SKE, shape)
    if name == "triton":
        return _triton(pool_NL2SKE, shape)
    if name == "torch_cpu":
        return _torch_cpu(pool_NL2SKE, shape)
    return _torch(pool_NL2SKE, shape)


def _fastest(pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    if pool_NL2SKE.device.type == "cpu":
        return (_torch_cpu if shape.soft_cap is None else _torch)(pool_NL2SKE, shape)
    decode = _triton(pool_NL2SKE, shape)
    if _fa3_obstacle(pool_NL2SKE) is not None:
        return decode
    from engine.attention.by_phase import ByPhase

    return ByPhase(extend=_fa3(pool_NL2SKE, shape), decode=decode)


def _torch(pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    from engine.attention.torch_ref import TorchReference

    return TorchReference(pool_NL2SKE, shape)


def _torch_cpu(pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    if pool_NL2SKE.device.type != "cpu" or shape.soft_cap is not None:
        raise InvalidRequest("attention backend torch_cpu needs a CPU and a model without soft cap")
    from engine.attention.torch_cpu import TorchCPU

    return TorchCPU(pool_NL2SKE, shape)


def _triton(pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    if pool_NL2SKE.device.type != "cuda":
        raise InvalidRequest("attention backend triton needs a CUDA device")
    from engine.attention.triton import TritonAttention

    return TritonAttention(pool_NL2SKE, shape)


def _fa3(pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    obstacle = _fa3_obstacle(pool_NL2SKE)
    if obstacle is not None:
        raise InvalidRequest(f"attention backend fa3 {obstacle}")
    from engine.attention.fa3 import FlashAttention3, find_kernels

    kernels = find_kernels()
    assert kernels is not None, "just found"
    return FlashAttention3(pool_NL2SKE, shape, kernels)


def _fa3_obstacle(pool_NL2SKE: Tensor) -> str | None:
    """Why FlashAttention-3 cannot run here; None when it can."""
    from engine.attention.fa3 import HOPPER, PACKAGES, find_kernels

    if pool_NL2SKE.device.type != "cuda" or torch.cuda.get_device_capability(pool_NL2SKE.device) != HOPPER:
        return "needs a Hopper GPU"
    if pool_NL2SKE.dtype not in (torch.bfloat16, torch.float16):
        return "needs a KV dtype of bfloat16 or float16"
    if find_kernels() is None:
        return f"needs one of the packages {', '.join(PACKAGES)}"
    return None
