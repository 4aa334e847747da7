"""The parts that a decoder layer is made of, in plain torch.

Shape suffixes: T tokens, D any width, I inputs, O outputs, M MLP width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

FEW_ROWS_ON_CPU = range(5, 65)
"""Rows for which the CPU's matrix library is faster with the weight as its first operand: 1.3 to 1.7 times in float32
and 1.1 to 1.5 times in bfloat16 (AVX-512, widths 768 to 5,632)."""


@dataclass(frozen=True, slots=True)
class Linear:
    """x W^T + b. The one place that knows how a weight is stored."""

    weight_OI: Tensor
    bias_O: Tensor | None = None
    scale_O: Tensor | None = None
    """float32: W is weight_OI, of 8-bit floats, times this, row by row. None: W is weight_OI."""

    def __call__(self, x_TI: Tensor) -> Tensor:
        """out_TO. An 8-bit weight is converted to x's type each time: the reference, and the CPU's way."""
        if self.scale_O is None:
            return product(x_TI, self.weight_OI, self.bias_O)
        out_TO = product(x_TI, self.weight_OI.to(x_TI.dtype)) * self.scale_O.to(x_TI.dtype)
        return out_TO if self.bias_O is None else out_TO + self.bias_O


def product(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b, out_TO."""
    if not x_TI.is_cpu or len(x_TI) not in FEW_ROWS_ON_CPU:
        return functional.linear(x_TI, weight_OI, bias_O)
    if bias_O is None:
        return torch.mm(weight_OI, x_TI.T).T.contiguous()
    return torch.addmm(bias_O[:, None], weight_OI, x_TI.T).T.contiguous()


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension (arXiv:1910.07467).

    Normalized in float32 and rounded to the input's dtype before the weight multiplies it, as transformers does.
    """
    wide_TD = x_TD.float()
    scaled_TD = wide_TD * (wide_TD.square().mean(-1, keepdim=True) + eps).rsqrt()
    return scaled_TD.to(x_TD.dtype).mul_(weight_D)


def silu_mul(gate_up_T2M: Tensor) -> Tensor:
    """SiLU(gate) * up, out_TM; the input holds [gate | up] along its last dimension."""
    gate_TM, up_TM = gate_up_T2M.chunk(2, dim=-1)
    return functional.silu(gate_TM).mul_(up_TM)
