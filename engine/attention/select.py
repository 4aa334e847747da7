"""Which attention backend runs on this device. Each adapter is imported only when it is chosen."""

import logging

import torch
from torch import Tensor

from engine.attention.base import AttentionBackend, AttentionShape
from engine.core.errors import InvalidRequest

BACKENDS = ("auto", "fa3", "triton", "torch", "torch_cpu", "numba")


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
    if name == "numba":
        return _numba(pool_NL2SKE, shape)
    return _torch(pool_NL2SKE, shape)


def _fastest(pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    if pool_NL2SKE.device.type == "cpu":
        return _fastest_on_cpu(pool_NL2SKE, shape)
    decode = _triton(pool_NL2SKE, shape)
    if _fa3_obstacle(pool_NL2SKE) is not None:
        return decode
    from engine.attention.by_phase import ByPhase

    return ByPhase(extend=_fa3(pool_NL2SKE, shape), decode=decode)


def _fastest_on_cpu(pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    if shape.soft_cap is not None:
        return _torch(pool_NL2SKE, shape)
    obstacle = _numba_obstacle(pool_NL2SKE, shape)
    if obstacle is None:
        return _numba(pool_NL2SKE, shape)
    logging.getLogger(__name__).warning("attention by numba %s: decode steps take the slower way of torch", obstacle)
    return _torch_cpu(pool_NL2SKE, shape)


def _torch(pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    from engine.attention.torch_ref import TorchReference

    return TorchReference(pool_NL2SKE, shape)


def _torch_cpu(pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    if pool_NL2SKE.device.type != "cpu" or shape.soft_cap is not None:
        raise InvalidRequest("attention backend torch_cpu needs a CPU and a model without soft cap")
    from engine.attention.torch_cpu import TorchCPU

    return TorchCPU(pool_NL2SKE, shape)


def _numba(pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    obstacle = _numba_obstacle(pool_NL2SKE, shape)
    if obstacle is not None:
        raise InvalidRequest(f"attention backend numba {obstacle}")
    from engine.attention.torch_cpu import TorchCPU
    from engine.kernels.cpu.paged_decode import PagedDecode

    return TorchCPU(pool_NL2SKE, shape, PagedDecode(pool_NL2SKE, shape.softmax_scale))


def _numba_obstacle(pool_NL2SKE: Tensor, shape: AttentionShape) -> str | None:
    """Why the compiled kernel cannot run here; None when it can."""
    if pool_NL2SKE.device.type != "cpu" or shape.soft_cap is not None:
        return "needs a CPU and a model without soft cap"
    if pool_NL2SKE.dtype not in (torch.float32, torch.bfloat16):
        return "needs a KV dtype of float32 or bfloat16"
    try:
        import numba
    except ImportError as error:
        return f"cannot import its package: {error}"
    del numba
    return None


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
