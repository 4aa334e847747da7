"""The batches of one publisher: their numbers, the last ones for replay, and the state after the newest. Pure."""

from collections import deque

MAX_BATCHES = 10_000
MAX_BYTES = 64 << 20
"""Of payloads: a batch of long prompts is large."""


class EventLog:
    """Numbers batches from `first` on and keeps the newest of them, within both limits."""

    def __init__(self, first: int, max_batches: int = MAX_BATCHES, max_bytes: int = MAX_BYTES) -> None:
        self._max_batches = max_batches
        self._max_bytes = max_bytes
        self._payloads: deque[bytes] = deque()
        self._num_bytes = 0
        self.last = first - 1
        """The number of the newest batch."""
        self.view_digest = 0
        self.num_pages = 0

    @property
    def first(self) -> int:
        """The number of the oldest batch that is kept."""
        return self.last + 1 - len(self._payloads)

    def add(self, payload: bytes, view_digest: int, num_pages: int) -> int:
        """The next batch, and what the cache holds after it. Returns its number."""
        self.last += 1
        self.view_digest, self.num_pages = view_digest, num_pages
        self._payloads.append(payload)
        self._num_bytes += len(payload)
        while len(self._payloads) > self._max_batches or (
            self._num_bytes > self._max_bytes and len(self._payloads) > 1
        ):
            self._num_bytes -= len(self._payloads.popleft())
        return self.last

    def since(self, number: int) -> list[tuple[int, bytes]]:
        """The kept batches from `number` on."""
        first = self.first
        skip = max(0, number - first)
        return [(first + at, payload) for at, payload in enumerate(self._payloads) if at >= skip]
