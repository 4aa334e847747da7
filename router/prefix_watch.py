"""Which prefixes the prompts of this router share: what people can be shown of an index whose pages are nameless."""

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

MAX_PREFIXES = 128
MAX_CHAINS = 4
"""Prompts that are remembered of those that begin alike, the latest."""
PREVIEW_TOKENS = 32


@dataclass(slots=True)
class SharedPrefix:
    """Prompts that begin alike. Mutable."""

    digests: Sequence[bytes]
    """Of the pages that all of them begin with."""
    page_size: int
    head: "array[int]"
    """The first tokens."""
    chains: "deque[Sequence[bytes]]"
    """The full pages of the latest of them."""
    uses: int = 1

    @property
    def num_tokens(self) -> int:
        """Of the part that is shared; of the whole prompt while there was only one."""
        return len(self.digests) * self.page_size


class PrefixWatch:
    """The prefixes of recent prompts, by their first page; the least recently used one makes room."""

    def __init__(self, max_prefixes: int = MAX_PREFIXES) -> None:
        self._max_prefixes = max_prefixes
        self._prefixes: dict[bytes, SharedPrefix] = {}

    def saw(self, digests: Sequence[bytes], page_size: int, tokens: "array[int]") -> None:
        """A prompt was sent to a worker; `digests` name its full pages."""
        if not digests:
            return
        prefix = self._prefixes.pop(digests[0], None)
        if prefix is None:
            head = tokens[: min(page_size, PREVIEW_TOKENS)]
            prefix = SharedPrefix(digests, page_size, head, deque(maxlen=MAX_CHAINS))
        else:
            prefix.uses += 1
            prefix.digests = prefix.digests[: num_common(prefix.digests, digests)]
        prefix.chains.append(digests)
        self._prefixes[digests[0]] = prefix
        if len(self._prefixes) > self._max_prefixes:
            del self._prefixes[next(iter(self._prefixes))]

    def top(self, limit: int) -> list[SharedPrefix]:
        """Those that saved the most: tokens times uses, the largest first."""
        return sorted(self._prefixes.values(), key=lambda prefix: -prefix.num_tokens * prefix.uses)[:limit]


def num_common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """Pages. Digests are chained: where two are equal, all before them are. The first ones are."""
    low, high = 0, min(len(one), len(other)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle] == other[middle]:
            low = middle
        else:
            high = middle - 1
    return low + 1
