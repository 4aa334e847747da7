"""Log probabilities in the two spellings of the OpenAI API."""

from collections.abc import Iterable, Sequence
from typing import Any

from router.text.output import TokenText

Json = dict[str, Any]

FLOOR = -9999.0
"""Stands for minus infinity, which JSON cannot say: the probability of a token that could not be drawn."""


def legacy_token(piece: bytes) -> str:
    """A token's text; "bytes:\\xe4\\xbd" for one that is no whole character, so that no two look the same."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def legacy_logprobs(rows: Iterable[TokenText], offset: int) -> Json:
    """Of /v1/completions: parallel lists. `offset`: characters of an echoed prompt before the answer."""
    rows = list(rows)
    return {
        "tokens": [legacy_token(row.piece) for row in rows],
        "token_logprobs": [max(row.logprob, FLOOR) for row in rows],
        "top_logprobs": [_legacy_top(row) for row in rows],
        "text_offset": [offset + row.start for row in rows],
    }


def _legacy_top(row: TokenText) -> dict[str, float]:
    top = {legacy_token(piece): max(logprob, FLOOR) for _, logprob, piece in row.top}
    return top | {legacy_token(row.piece): max(row.logprob, FLOOR)}


def joined(parts: Sequence[Json]) -> Json:
    """Several legacy lists as one."""
    return {key: [item for part in parts for item in part[key]] for key in parts[0]}


def chat_logprobs(rows: Iterable[TokenText]) -> Json:
    """Of /v1/chat/completions: one object a token."""
    return {
        "content": [
            {
                **_chat_token(row.logprob, row.piece),
                "top_logprobs": [_chat_token(lp, piece) for _, lp, piece in row.top],
            }
            for row in rows
        ],
        "refusal": None,
    }


def _chat_token(logprob: float, piece: bytes) -> Json:
    return {"token": piece.decode(errors="replace"), "logprob": max(logprob, FLOOR), "bytes": list(piece)}
