"""Pages in plain host memory, without torch: for tests, benchmarks and virtual workers."""

import ctypes

from engine.core.types import KVLayout
from kv_transfer.transports.base import NUM_SPARE_PAGES


class HostPool:
    """A PagePool over one bytearray."""

    device = -1

    def __init__(self, layout: KVLayout, num_pages: int) -> None:
        self.layout = layout
        self.num_pages = num_pages
        num_slabs = num_pages + NUM_SPARE_PAGES
        self._page_bytes = layout.page_bytes
        self._layer_bytes = self._page_bytes // layout.num_layers
        self._bytes = bytearray(num_slabs * self._page_bytes)
        self._view = memoryview(self._bytes)
        self.generations = memoryview(bytearray(8 * num_slabs)).cast("Q")

    @property
    def address(self) -> int:
        """Of slab 0. The bytearray never moves: it is never resized, and views of it are held."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._bytes))

    def read(self, page: int, layer_begin: int, layer_end: int) -> memoryview:
        """The memory itself."""
        start = page * self._page_bytes
        return self._view[start + layer_begin * self._layer_bytes : start + layer_end * self._layer_bytes]

    def write(self, page: int, layer_begin: int, layer_end: int, data: memoryview | bytes | bytearray) -> None:
        """Raises ValueError if `data` has another size."""
        self.read(page, layer_begin, layer_end)[:] = data
