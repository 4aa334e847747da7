"""What lies between the products of a decoder layer on a CPU, activations transposed: [width, tokens].

The matrix library is fastest with the weight first for a few rows, and its result is then [outputs, tokens]. These
kernels read and write that order, so nothing is transposed back; their inner loops run along the tokens, which also
makes the result of a token independent of the others. One thread each: a layer's worth takes microseconds.

Shape suffixes: see engine.models.llama and engine.attention.base; M MLP width.
"""

import numpy as np

from engine.kernels.cpu.jit import exp32, kernel


@kernel("void(f4[:, ::1], f4[:, ::1], f4[::1], f4, f4[:, ::1])")
def add_rms_norm(stream_DT, added_DT, weight_D, eps, out_DT) -> None:
    """Add `added` to the residual stream in place, and write the RMSNorm of the sum (arXiv:1910.07467).

    Squares are summed in float64. An `added` without rows adds nothing.
    """
    width, num_tokens = stream_DT.shape
    sum_T = np.zeros(num_tokens, np.float64)
    for d in range(width):
        for t in range(num_tokens):
            value = stream_DT[d, t]
            if len(added_DT):
                value += added_DT[d, t]
                stream_DT[d, t] = value
            sum_T[t] += np.float64(value) * np.float64(value)
    scale_T = np.empty(num_tokens, np.float32)
    for t in range(num_tokens):
        scale_T[t] = np.float32(1) / np.sqrt(np.float32(sum_T[t] / width) + eps)
    for d in range(width):
        for t in range(num_tokens):
            out_DT[d, t] = (stream_DT[d, t] * scale_T[t]) * weight_D[d]


@kernel("void(f4[:, ::1], f4[:, ::1])")
def silu_mul(gate_up_2MT, out_MT) -> None:
    """SiLU(gate) * up; the input holds gate's rows, then up's."""
    half = out_MT.size
    both, out = gate_up_2MT.reshape(2 * half), out_MT.reshape(half)
    for i in range(half):
        out[i] = both[i] / (np.float32(1) + exp32(-both[i])) * both[half + i]


@kernel("void(f4[:, :, ::1], f4[:, ::1], f4)")
def norm_heads(x_XET, weight_NE, eps) -> None:
    """RMSNorm of the first N heads of each token, in place."""
    num_heads, head_dim = weight_NE.shape
    num_tokens = x_XET.shape[2]
    for n in range(num_heads):
        for t in range(num_tokens):
            total = np.float64(0)
            for e in range(head_dim):
                total += np.float64(x_XET[n, e, t]) * np.float64(x_XET[n, e, t])
            scale = np.float32(1) / np.sqrt(np.float32(total / head_dim) + eps)
            for e in range(head_dim):
                x_XET[n, e, t] = (x_XET[n, e, t] * scale) * weight_NE[n, e]


@kernel("void(f4[:, :, ::1], f4[:, ::1], i8[::1], f4[:, :, :, :], f4[:, :, :, :], f4[:, :, ::1])")
def rope_and_write(qkv_XET, cos_sin_TE, slots_T, k_NSKE, v_NSKE, q_THE) -> None:
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
                low, high = qkv_XET[n, e, t], qkv_XET[n, half + e, t]
                cos, sin = cos_sin_TE[t, e], cos_sin_TE[t, half + e]
                new_low, new_high = low * cos - high * sin, high * cos + low * sin
                if n < num_heads:
                    q_THE[t, n, e], q_THE[t, n, half + e] = new_low, new_high
                else:
                    k_NSKE[page, position, n - num_heads, e] = new_low
                    k_NSKE[page, position, n - num_heads, half + e] = new_high
        for k in range(num_kv_heads):
            for e in range(head_dim):
                v_NSKE[page, position, k, e] = qkv_XET[num_heads + num_kv_heads + k, e, t]
