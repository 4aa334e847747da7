"""The KV pool: one slab a page, all pages in one allocation, and the generations that prove a page's owner.

    pool_NL2SKE  [ page 0 | page 1 | ... | page num_pages - 1 | golden | scratch ... ]
    page         [ layer 0: K, V | layer 1: K, V | ... ]          each [page_size, kv_heads, head_dim]

A page of all layers, and any run of layers of a page, is one contiguous range: one descriptor for a transfer.
No allocator names the NUM_SPARE_PAGES slabs at the end. They serve transfers, and the first of them also fills page
tables behind a row's last page, so that no read leaves the pool.

A worker of several ranks has such an allocation on each rank's device: page p of each holds that rank's heads of the
same tokens. There is one page number, and one generation, for all of them.
"""

from collections.abc import Sequence

import torch

from engine.core.types import NUM_SPARE_PAGES, KVLayout, Memory


class KVPool:
    """Owns the memory of all pages of a worker; is a kv_transfer PagePool. Which page is whose, EngineCore decides."""

    def __init__(self, layout: KVLayout, num_pages: int, devices: Sequence[torch.device]) -> None:
        """`devices` has one for each of layout.tp_size ranks."""
        num_slabs = num_pages + NUM_SPARE_PAGES
        heads = layout.num_kv_heads // layout.tp_size
        shape = (num_slabs, layout.num_layers, 2, layout.page_size, heads, layout.head_dim)
        self.layout = layout
        self.num_pages = num_pages
        self.filler_page = num_pages
        dtype = getattr(torch, layout.dtype)
        self.tensors_NL2SKE = [torch.empty(shape, dtype=dtype, device=device) for device in devices]
        """By rank."""
        for tensor_NL2SKE in self.tensors_NL2SKE:
            # Written, not only mapped: a pool that does not fit fails now, and no process grows while it serves.
            tensor_NL2SKE.zero_()
        self._slabs_NLB = [
            tensor_NL2SKE.view(num_slabs, layout.num_layers, -1).view(torch.uint8)
            for tensor_NL2SKE in self.tensors_NL2SKE
        ]
        self._generations_N = torch.zeros(num_slabs, dtype=torch.int64)

    @property
    def memories(self) -> tuple[Memory, ...]:
        """By rank; page p begins at `address + p * layout.page_bytes`."""
        return tuple(Memory(tensor.data_ptr(), tensor.get_device()) for tensor in self.tensors_NL2SKE)

    @property
    def generations(self) -> memoryview:
        """Host memory that stays where it is, format "Q": one counter a slab."""
        return self._generations_N.numpy().data.cast("B").cast("Q")

    def read(self, page: int, layer_begin: int, layer_end: int, rank: int = 0) -> memoryview:
        """Bytes of layers [layer_begin, layer_end) of one page: the memory itself on the host, else a copy of it."""
        return self._layers(rank, page, layer_begin, layer_end).cpu().numpy().data

    def write(
        self, page: int, layer_begin: int, layer_end: int, data: memoryview | bytes | bytearray, rank: int = 0
    ) -> None:
        """Overwrite those layers of one page with `data`. Raises ValueError if it has another size."""
        target = self._layers(rank, page, layer_begin, layer_end)
        if len(data) != target.numel():
            raise ValueError(f"{target.numel()} bytes expected, {len(data)} given")
        if target.is_cpu:
            target.numpy().data[:] = data
        else:
            target.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def _layers(self, rank: int, page: int, layer_begin: int, layer_end: int) -> torch.Tensor:
        slabs_NLB = self._slabs_NLB[rank]
        if not 0 <= page < len(slabs_NLB) or not 0 <= layer_begin < layer_end <= self.layout.num_layers:
            raise ValueError(f"the pool has no layers [{layer_begin}, {layer_end}) of page {page}")
        return slabs_NLB[page, layer_begin:layer_end].view(-1)
