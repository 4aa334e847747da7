"""Which tensors of a checkpoint make up each parameter of the model, and which part of them a rank holds. Pure.

Query, key and value projections are one parameter, gate and up are another: one product instead of three and two.
A rank of a tensor-parallel group holds whole heads, a range of the MLP's columns and a range of the output head's rows
(all of them where they do not divide); the embedding and norms are whole. A bias that is added to a sum over ranks is
the first rank's alone.
"""

from dataclasses import dataclass, replace

from engine.core.errors import CheckpointError
from engine.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Source:
    """A part of one checkpoint tensor: the range [start, stop) along `dim`, all of the other dimension."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor in the checkpoint."""
    start: int
    stop: int
    dim: int = 0

    @property
    def rows(self) -> slice:
        """Of the whole tensor."""
        return slice(self.start, self.stop) if self.dim == 0 else slice(None)

    @property
    def index(self) -> tuple[slice, ...]:
        """The part, as an index into the whole tensor."""
        return (slice(None),) * self.dim + (slice(self.start, self.stop),)

    @property
    def columns(self) -> tuple[slice, ...]:
        """The part, as an index into its rows: all of them, and those columns that it has of them."""
        return (slice(None), *self.index[1:])

    @property
    def part(self) -> tuple[int, ...]:
        """Shape of the part."""
        return tuple(self.stop - self.start if i == self.dim else size for i, size in enumerate(self.shape))


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the model: its sources, one below the other."""

    sources: tuple[Source, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows of all sources, columns of any."""
        return (sum(source.part[0] for source in self.sources), *self.sources[0].part[1:])


@dataclass(frozen=True, slots=True)
class Rank:
    """One of `size` ranks that share a model."""

    index: int = 0
    size: int = 1

    def share(self, total: int) -> tuple[int, int]:
        """This rank's range of `total` equal things."""
        return self.index * total // self.size, (self.index + 1) * total // self.size

    def share_or_all(self, total: int) -> tuple[int, int]:
        """This rank's range where `total` divides among the ranks, else all of it."""
        return (0, total) if total % self.size else self.share(total)


def parameters(config: ModelConfig, rank: Rank | None = None) -> dict[str, Parameter]:
    """Every parameter that `rank` holds, by name: "embedding", "layers.0.qkv.weight", ... in forward order.

    Raises:
        CheckpointError: heads or MLP columns do not divide among the ranks.
    """
    rank = rank or Rank()
    for what, total in (
        ("num_key_value_heads", config.attention.num_kv_heads),
        ("intermediate_size", config.intermediate_size),
    ):
        if total % rank.size:
            raise CheckpointError(f"config.json: {what} is {total}, expected a multiple of {rank.size} ranks")
    table = (config.vocab_size, config.hidden_size)
    found = {"embedding": _whole("model.embed_tokens.weight", *table)}
    for layer in range(config.num_layers):
        for name, parameter in _layer(config, f"model.layers.{layer}", rank).items():
            found[f"layers.{layer}.{name}"] = parameter
    found["norm"] = _whole("model.norm.weight", config.hidden_size)
    if not config.tied_embeddings:
        found["head"] = Parameter((Source("lm_head.weight", table, *rank.share_or_all(config.vocab_size)),))
    return found


def local_config(config: ModelConfig, rank: Rank) -> ModelConfig:
    """The facts of what one rank computes: its heads and its columns; everything else is the whole model's."""
    attention = replace(
        config.attention,
        num_heads=config.attention.num_heads // rank.size,
        num_kv_heads=config.attention.num_kv_heads // rank.size,
    )
    return replace(config, attention=attention, intermediate_size=config.intermediate_size // rank.size)


def _layer(config: ModelConfig, prefix: str, rank: Rank) -> dict[str, Parameter]:
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    facts, hidden, width = config.attention, config.hidden_size, config.intermediate_size
    query = _heads(rank, facts.num_heads, facts.head_dim)
    key_value = _heads(rank, facts.num_kv_heads, facts.head_dim)
    columns = (width, *rank.share(width))
    found = {"input_norm": _whole(f"{prefix}.input_layernorm.weight", hidden)}
    qkv = {f"{attention}.q_proj": query, f"{attention}.k_proj": key_value, f"{attention}.v_proj": key_value}
    found |= _stacked("qkv", qkv, hidden, facts.qkv_bias)
    if facts.qk_norm:
        found["q_norm"] = _whole(f"{attention}.q_norm.weight", facts.head_dim)
        found["k_norm"] = _whole(f"{attention}.k_norm.weight", facts.head_dim)
    found |= _narrowed("output", f"{attention}.o_proj", query, hidden, facts.output_bias and rank.index == 0)
    found["mlp_norm"] = _whole(f"{prefix}.post_attention_layernorm.weight", hidden)
    found |= _stacked("gate_up", {f"{mlp}.gate_proj": columns, f"{mlp}.up_proj": columns}, hidden, config.mlp_bias)
    found |= _narrowed("down", f"{mlp}.down_proj", columns, hidden, config.mlp_bias and rank.index == 0)
    return found


def _heads(rank: Rank, count: int, head_dim: int) -> tuple[int, int, int]:
    """Rows of `count` heads, and the range of them that this rank holds."""
    start, stop = rank.share(count)
    return count * head_dim, start * head_dim, stop * head_dim


def _stacked(name: str, rows_of: dict[str, tuple[int, int, int]], columns: int, bias: bool) -> dict[str, Parameter]:
    """A product whose outputs are split: this rank's rows of each module, one below the other."""
    weights = (Source(f"{module}.weight", (rows, columns), *share) for module, (rows, *share) in rows_of.items())
    found = {f"{name}.weight": Parameter(tuple(weights))}
    if bias:
        biases = (Source(f"{module}.bias", (rows,), *share) for module, (rows, *share) in rows_of.items())
        found[f"{name}.bias"] = Parameter(tuple(biases))
    return found


def _narrowed(name: str, module: str, columns: tuple[int, int, int], rows: int, bias: bool) -> dict[str, Parameter]:
    """A product whose inputs are split: this rank's columns. The bias is whole, on the rank that adds it."""
    total, start, stop = columns
    found = {f"{name}.weight": Parameter((Source(f"{module}.weight", (rows, total), start, stop, dim=1),))}
    if bias:
        found[f"{name}.bias"] = _whole(f"{module}.bias", rows)
    return found


def _whole(name: str, *shape: int) -> Parameter:
    return Parameter((Source(name, shape, 0, shape[0]),))
