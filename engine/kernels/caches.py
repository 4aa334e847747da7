"""One layer's pages, as attention backends hand them to models and kernels. No Triton in here."""

from typing import NamedTuple

from torch import Tensor


class Caches(NamedTuple):
    """Views of the pool, [pages, page_size, K, E] each: equal strides, last dimension dense."""

    k: Tensor
    v: Tensor
    k_scale: float = 1.0
    """Pages of 8-bit values hold k / k_scale and v / v_scale; pages of other types hold k and v."""
    v_scale: float = 1.0
