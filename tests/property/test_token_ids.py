"""Token ids straight from bytes: whatever the fast way takes, the JSON parser would have read the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http.token_ids import MIN_BYTES, cut_token_ids

PAD = {"user": "x" * MIN_BYTES}


@given(
    ids=st.lists(st.integers(0, 999_999_999), min_size=1, max_size=40),
    space=st.sampled_from(["", " ", "\n\t", " \r\n"]),
    first=st.booleans(),
)
def test_plain_lists_are_taken_as_they_are(ids: list[int], space: str, first: bool) -> None:
    separators = ("," + space, space + ":" + space)
    fields = {"prompt": ids, **PAD} if first else {**PAD, "prompt": ids}
    data = json.dumps(fields, separators=separators).encode()
    rest, found = cut_token_ids(data)
    if space in ("", " "):
        assert found is not None and list(found) == ids
    if found is not None:
        assert list(found) == ids and json.loads(rest) == fields | {"prompt": []}


@given(st.text(alphabet='0012345,,, 6789-+.eE\n"[]{}tn', max_size=30))
def test_everything_else_is_left_to_the_parser(inner: str) -> None:
    data = b'{"prompt":[' + inner.encode() + b'],"user":"' + b"x" * MIN_BYTES + b'"}'
    rest, found = cut_token_ids(data)
    if found is None:
        assert rest is data
        return
    try:
        expected = json.loads(data)
    except ValueError:
        with pytest.raises(ValueError):
            json.loads(rest)
        return
    assert expected["prompt"] == list(found) and json.loads(rest) == expected | {"prompt": []}


def test_another_key_of_that_name_is_not_the_prompt() -> None:
    tail = b',"user":"' + b"x" * MIN_BYTES + b'"}'
    for head in (
        b'{"metadata":{"prompt":[1,2]}',
        b'{"prompt":[1,2],"prompt":[3]',
        b'{"prompt":[1,2],"metadata":{"prompt":"x"}',
        b'{"user":"prompt","prompt":[1,2]',
        b'{"stop":["a"],"prompt":[1,2]',
        b'{"prompt":[[1,2]]',
        b'{"prompt":"[1,2]"',
        b'{"prompt":[]',
        b'{"prompt":[4294967296]',
        b'{"prompt":[01]',
        b'{"prompt":[1,2',
    ):
        data = head + tail
        assert cut_token_ids(data) == (data, None)
    data = b'{"a\\"prompt":[1,2]' + tail
    rest, _ = cut_token_ids(data)
    assert "prompt" not in json.loads(rest), "the schema refuses the key that it really is"
