"""What the round-trip property does not show: clocks, unknown kinds, malformed messages."""

from array import array

import pytest

from engine.core.errors import InvalidRequest
from engine.core.messages import Generate
from engine.core.types import Request, Sampling
from engine.wire import worker_pb2 as pb
from engine.wire.commands import command_from_proto, command_to_proto


def generate(deadline_s: float) -> Generate:
    return Generate(Request(7, array("i", [1, 2, 3]), 3, Sampling(), arrival_s=90.0, deadline_s=deadline_s))


def test_deadline_travels_as_what_is_left() -> None:
    message = command_to_proto(generate(deadline_s=102.5), now=100.0)
    assert message.generate.deadline_ms == 2500
    arrived = command_from_proto(message, now=5000.0)
    assert isinstance(arrived, Generate)
    assert arrived.request.deadline_s == 5002.5
    assert arrived.request.arrival_s == 5000.0


def test_passed_deadline_stays_passed() -> None:
    arrived = command_from_proto(command_to_proto(generate(deadline_s=99.0), now=100.0), now=10.0)
    assert isinstance(arrived, Generate)
    assert arrived.request.deadline_s == 9.0


def test_tokens_are_little_endian_int32() -> None:
    assert command_to_proto(generate(0.0), 0.0).generate.tokens == bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])


def test_unknown_kind_is_none() -> None:
    assert command_from_proto(pb.Command(), now=0.0) is None


def test_half_a_token_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="whole number of tokens"):
        command_from_proto(pb.Command(generate=pb.Request(tokens=b"12345")), now=0.0)


def test_unequal_bias_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="differ in length"):
        command_from_proto(pb.Command(prefill=pb.Request(sampling=pb.Sampling(bias_tokens=[1]))), now=0.0)
