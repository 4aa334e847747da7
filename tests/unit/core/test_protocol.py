import pytest

from engine.core.errors import Incompatible
from engine.core.protocol import PROTOCOL, check_protocol
from engine.wire import worker_pb2 as pb
from engine.wire.commands import info_from_proto, info_to_proto
from tests.fakes.workers import worker_info


@pytest.mark.parametrize("apart", [-1, 0, 1])
def test_neighbours_understand_each_other(apart: int) -> None:
    check_protocol(PROTOCOL + apart, "worker d1")


@pytest.mark.parametrize(("apart", "who"), [(-2, "it must be"), (2, "this side must be")])
def test_two_versions_apart_is_refused_and_says_who_is_behind(apart: int, who: str) -> None:
    with pytest.raises(Incompatible, match=f"worker d1 speaks protocol {PROTOCOL + apart}, .*: {who} updated first"):
        check_protocol(PROTOCOL + apart, "worker d1")


def test_a_worker_from_before_versions_were_counted_is_one_behind_the_first() -> None:
    """Its messages lack the field."""
    assert info_from_proto(pb.WorkerInfo(id="d1")).protocol == 0
    assert info_from_proto(info_to_proto(worker_info("d1"))).protocol == PROTOCOL
