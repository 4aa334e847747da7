"""The admin door's page of what is where. It shows how prompts begin: for who has the cluster key only."""

from collections.abc import Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from router.api import PrefixReport

_MAX_PREFIXES = 256

Decode = Callable[[Sequence[int]], str]


def prefix_route(report: Callable[[int], PrefixReport], check_key: Callable[[Request], None], decode: Decode) -> Route:
    """GET /admin/prefixes?limit=20."""

    async def prefixes(request: Request) -> JSONResponse:
        check_key(request)
        limit = request.query_params.get("limit", "20")
        if not limit.isdigit() or int(limit) > _MAX_PREFIXES:
            raise HTTPException(400, f"limit must be a number up to {_MAX_PREFIXES}")
        return JSONResponse(prefix_body(report(int(limit)), decode))

    return Route("/admin/prefixes", prefixes, methods=["GET"])


def prefix_body(report: PrefixReport, decode: Decode) -> dict[str, object]:
    """A report as JSON."""
    return {
        "pages": report.num_pages,
        "workers": [
            {
                "id": view.worker,
                "source": view.source,
                "synced": view.synced,
                "tokens": dict(view.tokens),
                "digest": None if view.digest is None else f"{view.digest:015x}",
                "agrees": None if view.said is None or view.digest is None else view.said == view.digest,
            }
            for view in report.views
        ],
        "prefixes": [
            {
                "begins": decode(prefix.head),
                "tokens": prefix.num_tokens,
                "uses": prefix.uses,
                "holders": dict(prefix.holders),
            }
            for prefix in report.prefixes
        ],
    }
