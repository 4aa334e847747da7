"""A worker on its way out: from the wish that it should leave until it may. Pure."""

QUIET_S = 0.3
"""It stays for this long after the wish, and after the last thing it held: a router that has not yet read of the wish
may still send work, which is better moved than lost."""


class Departure:
    """Asked for by a router (Drain) or by a signal; there is no way back."""

    def __init__(self) -> None:
        self.asked = False
        self._exit_s = 0.0
        """When it leaves, whatever is left."""
        self._quiet_s = 0.0
        """Since when nothing has been here."""

    def ask(self, grace_s: float, now: float) -> None:
        """Leave within `grace_s`. Asked again, the sooner end counts."""
        exit_s = now + grace_s
        if not self.asked:
            self.asked, self._exit_s, self._quiet_s = True, exit_s, now
        self._exit_s = min(self._exit_s, exit_s)

    def may_exit(self, empty: bool, now: float) -> bool:
        """`empty`: no request is here and no page is held. To be asked a few times in QUIET_S."""
        if not self.asked:
            return False
        if not empty:
            self._quiet_s = now
        return now >= min(self._exit_s, self._quiet_s + QUIET_S)
