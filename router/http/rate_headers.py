"""A tenant's limits in the headers that OpenAI's clients know."""

from router.gateway.budget import Quota, Quotas


def rate_headers(quotas: Quotas) -> dict[str, str]:
    """x-ratelimit-* of the limits that there are."""
    headers: dict[str, str] = {}
    for name, quota in (("requests", quotas.requests), ("tokens", quotas.tokens)):
        if quota is not None:
            headers |= _of_one(name, quota)
    return headers


def _of_one(name: str, quota: Quota) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{name}": str(quota.limit),
        f"x-ratelimit-remaining-{name}": str(quota.remaining),
        f"x-ratelimit-reset-{name}": duration(quota.reset_s),
    }


def duration(seconds: float) -> str:
    """As OpenAI spells one: 12ms, 1s, 6m0s, 1h2m3s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{left}s"
