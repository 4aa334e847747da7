import pytest

from engine.core.errors import Incompatible
from engine.core.protocol import PROTOCOL, check_protocol


@pytest.mark.parametrize("apart", [-1, 0, 1])
def test_neighbours_understand_each_other(apart: int) -> None:
    check_protocol(PROTOCOL + apart, "worker d1")


@pytest.mark.parametrize(("apart", "who"), [(-2, "it must be"), (2, "this side must be")])
def test_two_versions_apart_is_refused_and_says_who_is_behind(apart: int, who: str) -> None:
    with pytest.raises(Incompatible, match=f"worker d1 speaks protocol {PROTOCOL + apart}, .*: {who} updated first"):
        check_protocol(PROTOCOL + apart, "worker d1")
