"""Pages in plain host memory, without torch: for tests, benchmarks and virtual workers."""

import ctypes

from engine.core.types import KVLayout, Memory
from kv_transfer.transports.base import NUM_SPARE_PAGES


class HostPool:
    """A PagePool over a bytearray for each rank."""

    def __init__(self, layout: KVLayout, num_pages: int) -> None:
        self.layout = layout
        self.num_pages = num_pages
        num_slabs = num_pages + NUM_SPARE_PAGES
        self._page_bytes = layout.page_bytes
        self._layer_bytes = self._page_bytes // layout.num_layers
        self._bytes = [bytearray(num_slabs * self._page_bytes) for _ in range(layout.tp_size)]
        self._views = [memoryview(slabs) for slabs in self._bytes]
        self.generations = memoryview(bytearray(8 * num_slabs)).cast("Q")

    @property
    def memories(self) -> tuple[Memory, ...]:
        """Host memory. The bytearrays never move: they are never resized, and views of them are held."""
        return tuple(Memory(ctypes.addressof(ctypes.c_char.from_buffer(slabs)), -1) for slabs in self._bytes)

    def read(self, page: int, layer_begin: int, layer_end: int, rank: int = 0) -> memoryview:
        """The memory itself."""
        start = page * self._page_bytes
        return self._views[rank][start + layer_begin * self._layer_bytes : start + layer_end * self._layer_bytes]

    def write(
        self, page: int, layer_begin: int, layer_end: int, data: memoryview | bytes | bytearray, rank: int = 0
    ) -> None:
        """Raises ValueError if `data` has another size."""
        self.read(page, layer_begin, layer_end, rank)[:] = data
