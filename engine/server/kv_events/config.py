"""Where a worker publishes its prefix events."""

from dataclasses import dataclass

from engine.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class FeedConfig:
    """Two sockets of one host, events and replay; port 0 takes a free one."""

    host: str
    port: int
    replay_port: int
    encrypted: bool
    """CURVE, with keys that follow from the cluster key: readers need them too."""

    @property
    def scheme(self) -> str:
        """How endpoints are announced; ZMQ itself calls both tcp."""
        return "curve" if self.encrypted else "tcp"


def parse_feed(text: str) -> FeedConfig | None:
    """`tcp://HOST:PORT`, `curve://HOST:PORT`, or nothing: no feed. Replay is on the next port.

    Raises InvalidRequest.
    """
    if not text:
        return None
    scheme, _, place = text.partition("://")
    host, _, port = place.rpartition(":")
    if scheme not in ("tcp", "curve") or not host or not port.isdigit() or int(port) > 65_534:
        raise InvalidRequest(f"--kv-events must be tcp://HOST:PORT or curve://HOST:PORT, not {text!r}")
    return FeedConfig(host.strip("[]"), int(port), int(port) and int(port) + 1, scheme == "curve")
