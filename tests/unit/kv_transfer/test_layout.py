from dataclasses import replace

import pytest

from engine.core.errors import Incompatible
from engine.core.types import KVLayout
from kv_transfer.layout import check_layouts, layout_hash

MINE = KVLayout("model a", num_layers=32, num_kv_heads=8, head_dim=128, page_size=128, dtype="bfloat16")

CHANGES = {
    "model_hash": ("model b", "different models: model a here, model b there"),
    "num_layers": (16, "different numbers of layers: 32 here, 16 there"),
    "num_kv_heads": (4, "different numbers of KV heads"),
    "head_dim": (64, "different head dimensions"),
    "dtype": ("float8_e4m3fn", "different types of KV values: bfloat16 here, float8_e4m3fn there"),
    "order": ("LKHPD", "different orders"),
    "version": (2, "different versions of the page layout: 1 here, 2 there"),
}


def test_equal_layouts_fit() -> None:
    check_layouts(MINE, replace(MINE))


@pytest.mark.parametrize("page_size", [16, 64, 256, 1024])
def test_page_sizes_may_differ_by_a_whole_multiple(page_size: int) -> None:
    check_layouts(MINE, replace(MINE, page_size=page_size))


@pytest.mark.parametrize("tp_size", [2, 4, 8])
def test_tensor_parallel_degrees_may_differ_by_a_whole_multiple(tp_size: int) -> None:
    check_layouts(MINE, replace(MINE, tp_size=tp_size))
    check_layouts(replace(MINE, tp_size=tp_size), MINE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"page_size": 192}, "neither is a multiple of the other: 128 tokens here, 192 there"),
        ({"tp_size": 3}, "8 KV heads do not divide among 3 ranks"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change: dict[str, int], words: str) -> None:
    with pytest.raises(Incompatible, match=words):
        check_layouts(MINE, replace(MINE, **change))


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_each_difference_is_refused_in_words(field: str) -> None:
    value, words = CHANGES[field]
    with pytest.raises(Incompatible, match=words):
        check_layouts(MINE, replace(MINE, **{field: value}))


def test_every_reason_is_named() -> None:
    with pytest.raises(Incompatible, match=r"models.*; .*types of KV values"):
        check_layouts(MINE, replace(MINE, model_hash="model b", dtype="float16"))


def test_every_field_is_in_the_hash() -> None:
    others = [replace(MINE, **{field: value}) for field, (value, _) in CHANGES.items()]
    others += [replace(MINE, page_size=64), replace(MINE, tp_size=2)]
    assert len({layout_hash(layout) for layout in [MINE, *others]}) == len(others) + 1
    assert layout_hash(MINE) == layout_hash(replace(MINE))


def test_fields_cannot_run_together() -> None:
    assert layout_hash(replace(MINE, num_layers=3, num_kv_heads=28)) != layout_hash(
        replace(MINE, num_layers=32, num_kv_heads=8)
    )
