import random

from engine.wire import kv_pb2
from kv_transfer.transports.signed import WINDOW, Judge, Signer

KEY = b"sixteen bytes or more"
ASK = kv_pb2.GenerationsRequest(pages=[1])


def requests(count: int, signer: Signer | None = None) -> list[kv_pb2.SignedRequest]:
    signer = signer or Signer(KEY)
    return [signer.sign("Pull", "p@1", ASK) for _ in range(count)]


def test_each_request_is_served_once_in_any_order() -> None:
    judge, asked = Judge("p@1", KEY), requests(500)
    random.Random(1).shuffle(asked)
    assert [judge.refusal("Pull", request) for request in asked] == [None] * 500
    assert all("served before" in (judge.refusal("Pull", request) or "") for request in asked)


def test_readers_do_not_share_numbers() -> None:
    judge = Judge("p@1", KEY)
    for _ in range(3):
        assert [judge.refusal("Pull", request) for request in requests(3)] == [None] * 3


def test_what_fell_out_of_the_window_is_refused() -> None:
    judge, asked = Judge("p@1", KEY), requests(2 * WINDOW)
    assert judge.refusal("Pull", asked[-1]) is None
    assert judge.refusal("Pull", asked[WINDOW]) is None
    assert judge.refusal("Pull", asked[WINDOW - 1]) is not None
    assert judge.refusal("Pull", asked[0]) is not None


def test_another_method_source_or_key_is_refused_and_counts_for_nothing() -> None:
    judge, (asked,) = Judge("p@1", KEY), requests(1)
    assert judge.refusal("Generations", asked) is not None
    assert Judge("p@2", KEY).refusal("Pull", asked) is not None
    assert Judge("p@1", KEY + b"!").refusal("Pull", asked) is not None
    assert judge.refusal("Pull", asked) is None
