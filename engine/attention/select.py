"""Which attention backend runs on this device. Each adapter is imported only when it is chosen."""

from torch import Tensor

from engine.attention.base import AttentionBackend, AttentionShape
from engine.core.errors import InvalidRequest

BACKENDS = ("auto", "torch", "torch_cpu")


def make_backend(name: str, pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    """The backend called `name`, or with "auto" the fastest one that serves this pool and shape.

    Raises:
        InvalidRequest: the name is unknown, or that backend cannot run here; the message says why.
    """
    if name not in BACKENDS:
        raise InvalidRequest(f"attention backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    on_cpu = pool_NL2SKE.device.type == "cpu"
    if name == "auto":
        name = "torch_cpu" if on_cpu and shape.soft_cap is None else "torch"
    if name == "torch_cpu":
        if not on_cpu or shape.soft_cap is not None:
            raise InvalidRequest("attention backend torch_cpu needs a CPU and a model without soft cap")
        from engine.attention.torch_cpu import TorchCPU

        return TorchCPU(pool_NL2SKE, shape)
    from engine.attention.torch_ref import TorchReference

    return TorchReference(pool_NL2SKE, shape)
