"""Readers whose subscription has arrived, and snapshots that wait for theirs. Pure."""

from engine.wire.kv_events import READER

_SUBSCRIBED, _UNSUBSCRIBED = b"\1", b"\0"
"""How an XPUB socket's words of its subscribers begin; the topic follows."""
_MAX_EARLY = 1000
"""Of readers that ask and never subscribe."""


class Readers:
    """By the topic of its own that each reader subscribes to, after the one that it reads."""

    def __init__(self) -> None:
        self._there: set[bytes] = set()
        self._early: dict[bytes, tuple[bytes, bytes]] = {}
        """Reader -> (client of the replay socket, what it asked for). The last question counts."""

    def heard(self, word: bytes) -> list[tuple[bytes, bytes]]:
        """What an XPUB socket said. Returns the questions (client, asked) whose answer need not wait any more."""
        kind, topic = word[:1], word[1:]
        if not topic.startswith(READER):
            return []
        if kind == _SUBSCRIBED:
            self._there.add(topic)
            return [self._early.pop(topic)] if topic in self._early else []
        if kind == _UNSUBSCRIBED:
            self._there.discard(topic)
        return []

    def may_have(self, reader: bytes, client: bytes, asked: bytes) -> bool:
        """Whether a snapshot for `reader` misses nothing; if not it is kept in mind."""
        if reader in self._there:
            return True
        self._early.pop(reader, None)
        self._early[reader] = (client, asked)
        if len(self._early) > _MAX_EARLY:
            del self._early[next(iter(self._early))]
        return False
