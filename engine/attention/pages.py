"""The pool as attention sees it: per-layer views, and the values in pages of another type than the model computes in.

Pages of float8_e4m3fn hold round(value / scale), saturated at the type's largest number, 448: half the bytes of
bfloat16 for a relative error of up to 2^-4 a value. Scales are static, one for k and one for v of each layer.

Shape suffixes: see engine.attention.base.
"""

import torch
from torch import Tensor

from engine.attention.base import AttentionShape, layer_views
from engine.kernels.caches import Caches

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


class Pages:
    """The pool and how its values are read and written. Shared by the backends that are written in torch."""

    def __init__(self, pool_NL2SKE: Tensor, shape: AttentionShape) -> None:
        self.pool_NL2SKE = pool_NL2SKE
        self.shape = shape
        # Indexing of 8-bit floats is not everywhere implemented; that of bytes is.
        self._stored_NL2SKE = pool_NL2SKE.view(torch.uint8) if pool_NL2SKE.dtype == FP8 else pool_NL2SKE

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return self.pool_NL2SKE.shape[3]

    def caches(self, layer: int) -> Caches:
        """k_NSKE and v_NSKE of one layer, with their scales where the pool has 8-bit values."""
        views = layer_views(self.pool_NL2SKE, layer)
        return Caches(*views, *self.shape.scales(layer)) if self.pool_NL2SKE.dtype == FP8 else Caches(*views)

    def write(self, layer: int, slots_T: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """Scatter new keys and values of one layer into their slots; tokens with slot -1 go nowhere."""
        keep_T = slots_T >= 0
        slots = slots_T[keep_T]
        pages, positions = slots // self.page_size, slots % self.page_size
        for half, (new_TKE, scale) in enumerate(zip((k_TKE, v_TKE), self.shape.scales(layer), strict=True)):
            self._stored_NL2SKE[pages, layer, half, positions] = self._encode(new_TKE[keep_T], scale)

    def read(self, layer: int, pages: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """k_PSKE and v_PSKE of some pages (int64), in `dtype`."""
        k_scale, v_scale = self.shape.scales(layer)
        k_PSKE, v_PSKE = (stored_NSKE[pages] for stored_NSKE in layer_views(self._stored_NL2SKE, layer))
        return self._decode(k_PSKE, k_scale, dtype), self._decode(v_PSKE, v_scale, dtype)

    def _encode(self, values: Tensor, scale: float) -> Tensor:
        if self.pool_NL2SKE.dtype != FP8:
            return values.to(self.pool_NL2SKE.dtype)
        return to_fp8(values, scale).view(torch.uint8)

    def _decode(self, stored: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        if self.pool_NL2SKE.dtype != FP8:
            return stored.to(dtype)
        return from_fp8(stored.view(FP8), scale, dtype)


def to_fp8(values: Tensor, scale: float) -> Tensor:
    """float8_e4m3fn of values / scale, saturated: beyond 448 the conversion itself would give NaN."""
    return (values.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def from_fp8(stored: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """The values that `stored` stands for."""
    values = stored.to(dtype)
    return values if scale == 1.0 else values * scale
