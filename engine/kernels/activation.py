"""SiLU(gate) * up over the packed output of the fused gate-up product."""

import torch
import triton
import triton.language as tl


@triton.jit
def _silu_mul_kernel(gate_up, out, F, BLOCK_F: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = f < F
    gate = tl.load(gate_up + row * 2 * F + f, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * F + F + f, mask=inside, other=0.0)
    # The activation is rounded before the product, as the unfused pair of operations rounds it.
    active = (gate / (1.0 + tl.exp(-gate))).to(up.dtype)
    tl.store(out + row * F + f, active * up, mask=inside)


def silu_mul(gate_up_T2F: torch.Tensor) -> torch.Tensor:
    """gate_up holds [gate | up] along its last dimension; returns out_TF. Must be contiguous."""
    num_tokens, width = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    out_TF = gate_up_T2F.new_empty(num_tokens, width)
    if num_tokens:
        block = min(2048, triton.next_power_of_2(width))
        _silu_mul_kernel[(num_tokens, triton.cdiv(width, block))](
            gate_up_T2F, out_TF, width, BLOCK_F=block, num_warps=4
        )
    return out_TF
