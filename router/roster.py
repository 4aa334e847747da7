"""Which of the addresses that a name has had are kept as workers. Pure.

A name service may be late, partial or wrong for a moment, and a session that is open proves more than a record that
is missing: an address is given up only when the name has been without it for a while and nobody answers there.
"""

from dataclasses import dataclass, field

PATIENCE = 3
"""Answers in a row that lack an address before it is given up."""


@dataclass(frozen=True, slots=True)
class Change:
    """What follows from one answer."""

    added: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(slots=True)
class Roster:
    """The addresses of one name. Owns only what it added itself."""

    patience: int = PATIENCE
    _missed: dict[str, int] = field(default_factory=dict)
    """Answers in a row that each kept address was missing from."""

    def update(self, found: frozenset[str], connected: frozenset[str]) -> Change:
        """The name has the addresses `found` now; sessions are open with those in `connected`."""
        added = tuple(sorted(found - self._missed.keys()))
        for address in self._missed:
            self._missed[address] = 0 if address in found | connected else self._missed[address] + 1
        self._missed |= dict.fromkeys(added, 0)
        removed = tuple(sorted(address for address, times in self._missed.items() if times >= self.patience))
        for address in removed:
            del self._missed[address]
        return Change(added, removed)
