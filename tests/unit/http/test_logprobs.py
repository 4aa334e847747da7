"""Both spellings of log probabilities are valid JSON whatever the engine says."""

import json

from router.http.logprobs import chat_logprobs, legacy_logprobs
from router.text.output import TokenText

ROW = TokenText(5, float("-inf"), b"\xc3", 2, ((6, -0.5, b"a"), (7, float("-inf"), b"b")))


def test_minus_infinity_has_a_number() -> None:
    legacy = legacy_logprobs([ROW], offset=10)
    assert legacy == {
        "tokens": ["bytes:\\xc3"],
        "token_logprobs": [-9999.0],
        "top_logprobs": [{"a": -0.5, "b": -9999.0, "bytes:\\xc3": -9999.0}],
        "text_offset": [12],
    }
    chat = chat_logprobs([ROW])
    assert chat["content"][0]["logprob"] == -9999.0
    assert [top["logprob"] for top in chat["content"][0]["top_logprobs"]] == [-0.5, -9999.0]
    json.dumps([legacy, chat], allow_nan=False)
