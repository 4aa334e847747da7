"""Which checkpoint tensors make up a parameter, and how ranks share them."""

from dataclasses import replace

import pytest
from safetensors import safe_open

from engine.core.errors import CheckpointError
from engine.models.checkpoint import SINGLE
from engine.models.registry import load_config
from engine.models.weights import Parameter, Rank, parameters
from tests.fakes.checkpoints import ARCHITECTURES, tiny_checkpoint


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_of_a_checkpoint_is_used_once_and_whole(architecture: str) -> None:
    folder = tiny_checkpoint(architecture)
    sources = [source for each in parameters(load_config(folder)).values() for source in each.sources]
    used = {source.name: source.shape for source in sources}
    assert len(used) == len(sources)
    assert all(source.part == source.shape for source in sources)
    with safe_open(folder / SINGLE, framework="pt") as file:
        assert used == {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def test_fused_shapes() -> None:
    config = load_config(tiny_checkpoint("qwen2"))
    shapes = {name: each.shape for name, each in parameters(config).items()}
    assert shapes["layers.0.qkv.weight"] == ((4 + 2 + 2) * 16, 64)
    assert shapes["layers.0.qkv.bias"] == ((4 + 2 + 2) * 16,)
    assert shapes["layers.0.gate_up.weight"] == (2 * 112, 64)
    assert shapes["layers.2.down.weight"] == (64, 112)
    assert "head" not in shapes
    assert shapes["embedding"] == (config.vocab_size, 64)


def covered(parameter: Parameter) -> set[tuple[str, int]]:
    return {(source.name, i) for source in parameter.sources for i in range(source.start, source.stop)}


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_share_heads_and_columns_without_gap_or_overlap(size: int) -> None:
    config = load_config(tiny_checkpoint("qwen3", attention_bias=True))
    whole, ranks = parameters(config), [parameters(config, Rank(index, size)) for index in range(size)]
    split = ("qkv.weight", "qkv.bias", "gate_up.weight", "output.weight", "down.weight", "head")
    for name, parameter in whole.items():
        parts = [covered(rank[name]) for rank in ranks if name in rank]
        assert set().union(*parts) == covered(parameter)
        if name.endswith("output.bias"):
            assert parts == [covered(parameter)], "added once"
        elif name.endswith(split):
            assert sum(map(len, parts)) == len(covered(parameter))
            assert len({rank[name].shape for rank in ranks}) == 1
        else:
            assert all(part == covered(parameter) for part in parts)


def test_a_rank_holds_the_queries_of_its_keys() -> None:
    config = load_config(tiny_checkpoint("llama"))  # 4 query heads and 2 kv heads of 16
    q, k, v = parameters(config, Rank(1, 2))["layers.0.qkv.weight"].sources
    assert (q.start, q.stop) == (32, 64)
    assert (k.start, k.stop) == (v.start, v.stop) == (16, 32)


def test_ranks_that_do_not_divide_the_model_are_refused() -> None:
    config = load_config(tiny_checkpoint("llama"))
    with pytest.raises(CheckpointError, match="num_key_value_heads is 2, expected a multiple of 4 ranks"):
        parameters(config, Rank(0, 4))
    with pytest.raises(CheckpointError, match="intermediate_size is 111, expected a multiple of 2 ranks"):
        parameters(replace(config, intermediate_size=111), Rank(0, 2))
