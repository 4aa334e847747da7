import sys

import pytest
import torch

from engine.attention.select import make_backend
from engine.core.errors import InvalidRequest
from tests.unit.attention.paged import shape_of

POOL = torch.zeros(2, 2, 2, 4, 2, 16)


def test_auto_takes_the_cpu_path_unless_it_cannot_serve_the_model() -> None:
    assert make_backend("auto", POOL, shape_of()).name == "numba"
    assert make_backend("auto", POOL.double(), shape_of()).name == "torch_cpu"
    assert make_backend("auto", POOL, shape_of(soft_cap=30.0)).name == "torch"


def test_a_forced_backend_is_taken_or_refused_in_words() -> None:
    assert make_backend("torch", POOL, shape_of()).name == "torch"
    with pytest.raises(InvalidRequest, match="soft cap"):
        make_backend("torch_cpu", POOL, shape_of(soft_cap=30.0))
    with pytest.raises(InvalidRequest, match="float32 or bfloat16"):
        make_backend("numba", POOL.half(), shape_of())
    with pytest.raises(InvalidRequest, match="choose one of auto"):
        make_backend("fa9", POOL, shape_of())


def test_without_numba_the_way_of_torch_is_taken_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert make_backend("auto", POOL, shape_of()).name == "torch_cpu"
    assert "numba cannot be imported" in caplog.text
    with pytest.raises(InvalidRequest, match="needs the package numba"):
        make_backend("numba", POOL, shape_of())
