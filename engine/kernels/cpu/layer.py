"""What lies between the products of a decoder layer on a CPU. One thread each: a layer's worth takes microseconds.

Shape suffixes: see engine.models.llama and engine.attention.base; M MLP width.
"""

import numpy as np

from engine.kernels.cpu.jit import exp32, kernel


@kernel("void(f4[:, ::1], f4[:, ::1], f4[::1], f4, f4[:, ::1])")
def add_rms_norm(stream_TD, added_TD, weight_D, eps, out_TD) -> None:
    """Add `added` to the residual stream in place, and write the RMSNorm of the sum (arXiv:1910.07467).

    Squares are summed in float64. An `added` without rows adds nothing.
    """
    num_tokens, width = stream_TD.shape
    for t in range(num_tokens):
        if len(added_TD):
            for d in range(width):
                stream_TD[t, d] += added_TD[t, d]
        total = np.float64(0)
        for d in range(width):
            total += np.float64(stream_TD[t, d]) * np.float64(stream_TD[t, d])
        scale = np.float32(1) / np.sqrt(np.float32(total / width) + eps)
        for d in range(width):
            out_TD[t, d] = (stream_TD[t, d] * scale) * weight_D[d]


@kernel("void(f4[:, ::1], f4[:, ::1])")
def silu_mul(gate_up_T2M, out_TM) -> None:
    """SiLU(gate) * up; a row of the input holds gate's numbers, then up's."""
    num_tokens, width = out_TM.shape
    for t in range(num_tokens):
        for m in range(width):
            gate = gate_up_T2M[t, m]
            out_TM[t, m] = gate / (np.float32(1) + exp32(-gate)) * gate_up_T2M[t, width + m]


@kernel("void(f4[:, :, ::1], f4[:, ::1], f4)")
def norm_heads(x_TXE, weight_NE, eps) -> None:
    """RMSNorm of the first N heads of each token, in place."""
    num_heads, head_dim = weight_NE.shape
    for t in range(len(x_TXE)):
        for n in range(num_heads):
            total = np.float64(0)
            for e in range(head_dim):
                total += np.float64(x_TXE[t, n, e]) * np.float64(x_TXE[t, n, e])
            scale = np.float32(1) / np.sqrt(np.float32(total / head_dim) + eps)
            for e in range(head_dim):
                x_TXE[t, n, e] = (x_TXE[t, n, e] * scale) * weight_NE[n, e]


@kernel("void(f4[:, :, ::1], f4[:, ::1], i8[::1], f4[:, :, :, :], f4[:, :, :, :], f4[:, :, ::1])")
def rope_and_write(qkv_TXE, cos_sin_TE, slots_T, k_NSKE, v_NSKE, q_THE) -> None:
    """Rotate q and k, halves as in the Llama family; copy q to `q_THE`, k and v to their slots in a layer's caches.

    The heads of qkv are q's, k's and v's. Every slot is at least 0.
    """
    num_tokens, num_heads, head_dim = q_THE.shape
    page_size, num_kv_heads = k_NSKE.shape[1], k_NSKE.shape[2]
    half = head_dim // 2
    for t in range(num_tokens):
        page, position = slots_T[t] // page_size, slots_T[t] % page_size
        for n in range(num_heads + num_kv_heads):
            for e in range(half):
                low, high = qkv_TXE[t, n, e], qkv_TXE[t, n, half + e]
                cos, sin = cos_sin_TE[t, e], cos_sin_TE[t, half + e]
                new_low, new_high = low * cos - high * sin, high * cos + low * sin
                if n < num_heads:
                    q_THE[t, n, e], q_THE[t, n, half + e] = new_low, new_high
                else:
                    k_NSKE[page, position, n - num_heads, e] = new_low
                    k_NSKE[page, position, n - num_heads, half + e] = new_high
        for k in range(num_kv_heads):
            for e in range(head_dim):
                v_NSKE[page, position, k, e] = qkv_TXE[t, num_heads + num_kv_heads + k, e]
