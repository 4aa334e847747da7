"""What one H200 could do at best with a model's shape: products at the speed of a large one, memory read once.

Both rates were measured on the chip: a bfloat16 product of 8192 x 8192 x 8192, and a device-to-device copy.
"""

from dataclasses import dataclass
from typing import Any

PRODUCT_FLOPS_PER_S = 790e12
MEMORY_BYTES_PER_S = 4.25e12


@dataclass(frozen=True)
class Limits:
    """Weights and KV of a shape in bfloat16, or in 8-bit floats, which also multiply twice as fast."""

    layer_weights: int
    """Of all layers."""
    head_weights: int
    kv_values_per_token: int
    num_chips: int
    """That share all of it evenly, at no cost: sums over ranks are not counted."""
    attention_flops_per_pair: int
    """Of one query token and one key token, all layers."""
    weight_bytes: int = 2
    """Of one weight of a layer; the output projection has 2."""
    kv_bytes: int = 2

    @classmethod
    def of_shape(cls, shape: dict[str, Any], num_chips: int = 1, weight_bytes: int = 2, kv_bytes: int = 2) -> "Limits":
        """From a Hugging Face configuration."""
        hidden, layers, head_dim = shape["hidden_size"], shape["num_hidden_layers"], shape["head_dim"]
        heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        return cls(
            layer_weights=layers * (attention + 3 * hidden * shape["intermediate_size"]),
            head_weights=hidden * shape["vocab_size"],
            kv_values_per_token=layers * 2 * kv_heads * head_dim,
            num_chips=num_chips,
            attention_flops_per_pair=layers * 4 * heads * head_dim,
            weight_bytes=weight_bytes,
            kv_bytes=kv_bytes,
        )

    def extend_s(self, batch: int, num_new: int, num_cached: int = 0) -> float:
        """Extend each of `batch` sequences by many tokens: products bound it."""
        pairs = num_new * num_cached + num_new * (num_new + 1) // 2
        layers = 2 * num_new * self.layer_weights * self.weight_bytes / 2 + self.attention_flops_per_pair * pairs
        return batch * (layers + 2 * self.head_weights) / PRODUCT_FLOPS_PER_S / self.num_chips

    def decode_s(self, batch: int, num_cached: int) -> float:
        """One token for each sequence: all weights and all KV are read once, or the products take longer."""
        num_bytes = self.layer_weights * self.weight_bytes + 2 * self.head_weights
        products = num_bytes * batch  # 2 operations a weight of 2 bytes; those of 1 byte count half
        num_bytes += batch * num_cached * self.kv_values_per_token * self.kv_bytes
        return max(num_bytes / MEMORY_BYTES_PER_S, products / PRODUCT_FLOPS_PER_S) / self.num_chips
