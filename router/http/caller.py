"""Who sent a request, as the authenticating middleware noted it."""

from fastapi import Request

from router.gateway.tenants import Caller

CALLER = "baton_caller"
"""Where it stands in the request's scope."""


def caller_of(request: Request) -> Caller:
    """Of a path that is not open to all."""
    caller: Caller = request.scope[CALLER]
    return caller
