"""Sampling fields: every bad value is refused and the complaint names the field."""

from typing import Any

import pytest
from pydantic import ValidationError

from engine.core.errors import InvalidRequest
from router.doors.sampling import SamplingFields, choice_seed, invalid

NAN, INF = float("nan"), float("inf")


def refusal(fields: Any) -> InvalidRequest:
    """What a door says of them."""
    try:
        SamplingFields.model_validate(fields)
    except ValidationError as error:
        return invalid(error)
    except InvalidRequest as error:
        return error
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", NAN),
        ("temperature", INF),
        ("temperature", -0.1),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", NAN),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", 1.01),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", INF),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("max_tokens", -1),
        ("max_tokens", "many"),
        ("min_tokens", -1),
        ("n", 0),
        ("seed", 1.5),
        ("seed", 1 << 64),
        ("stop", ""),
        ("stop", ["a", 5]),
        ("stop", ["x"] * 17),
        ("stop", "x" * 1025),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 5),
        ("logit_bias", {"x": 1.0}),
        ("logit_bias", {"-1": 1.0}),
        ("logit_bias", {"1": 101.0}),
        ("logit_bias", {"1": NAN}),
        ("logit_bias", [1]),
        ("kv_transfer_params", {"do_remote_prefill": True}),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    assert refusal({field: value}).param == field


def test_an_unknown_argument_that_is_null_asks_for_nothing() -> None:
    SamplingFields.model_validate({"functions": None})


@pytest.mark.parametrize("field", ["logit_bias", "stop", "stop_token_ids", "anything"])
def test_a_complaint_is_short_however_much_is_wrong(field: str) -> None:
    values = [None] * 5000 if field.startswith("stop") else dict.fromkeys(map(str, range(5000)), "x")
    fields = values if field == "anything" else {field: values}
    assert len(refusal(fields).message) < 200
    assert len(refusal({"x" * 10**6: 1}).message) < 200


def test_null_is_the_default() -> None:
    empty = SamplingFields()
    assert SamplingFields.model_validate(dict.fromkeys(SamplingFields.model_fields)) == empty


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingFields(stop="a").stop == ["a"]  # type: ignore[arg-type]


def test_min_tokens_above_max_tokens() -> None:
    assert refusal({"min_tokens": 3, "max_tokens": 2}).param == "min_tokens"


def test_derived_seeds_differ_and_stay() -> None:
    assert choice_seed(7, 0) == 7
    assert len({choice_seed(7, index) for index in range(100)}) == 100
    assert choice_seed(7, 1) == choice_seed(7, 1) != choice_seed(8, 1)
