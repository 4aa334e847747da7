"""The page at /: one file, with a policy under which nothing but its own script and style runs."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import Response


@cache
def _page() -> tuple[bytes, str]:
    """The file and its Content-Security-Policy."""
    text = files("router").joinpath("page/index.html").read_text(encoding="utf-8")
    policy = {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "script-src": _hash_of("script", text),
        "style-src": _hash_of("style", text),
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return text.encode(), "; ".join(f"{name} {value}" for name, value in policy.items())


def _hash_of(tag: str, text: str) -> str:
    (block,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"


def page_response() -> Response:
    """The page, to be asked for again each time: it belongs to the version that serves it."""
    content, policy = _page()
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Response(content, media_type="text/html", headers=headers)
