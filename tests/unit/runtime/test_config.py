import pytest

from engine.core.errors import InvalidRequest
from engine.runtime.config import EngineConfig, parse_kv_memory


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.8", 0.8),
        ("1.0", 1.0),
        ("2GiB", 2 << 30),
        ("500M", 500_000_000),
        ("1.5g", 1_500_000_000),
        (" 64 kib ", 65536),
    ],
)
def test_kv_memory_is_bytes_or_a_fraction(text: str, value: int | float) -> None:
    parsed = parse_kv_memory(text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize("text", ["", "lots", "-1", "80%", "2GB2", "1e9", "nan"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot read"):
        parse_kv_memory(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "int8"), ("page_size", 0), ("kv_memory", 1.5), ("kv_memory", 0), ("max_rows", 0), ("max_model_len", -1)],
)
def test_values_out_of_range_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EngineConfig("m", **{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field
