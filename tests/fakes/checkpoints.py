"""Tiny random checkpoints of each architecture, as transformers writes them, with a byte-level tokenizer.

Each distinct one is made once per test process and removed when it ends. Weights are large enough for greedy decoding
to have clear winners, and biases and norms are random too, so that leaving one out changes the tokens.
"""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from engine.models.builtin import SPECIAL_TOKENS, tokenizer_config

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")

_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-5},
    "mistral": {"sliding_window": 40, "head_dim": 24},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
}
_CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
_FOLDERS = tempfile.TemporaryDirectory(prefix="baton-checkpoints-")


def tiny_checkpoint(
    architecture: str, *, seed: int = 0, shard_bytes: int = 0, dtype: str = "float32", **overrides: Any
) -> Path:
    """A checkpoint folder. Do not change its files; copy it first.

    Args:
        architecture: one of ARCHITECTURES.
        seed: of the weights.
        shard_bytes: split the weights into files of about that size, with an index; 0 is one file.
        dtype: of the weights.
        overrides: fields of transformers' configuration class.
    """
    return _make(architecture, seed, shard_bytes, dtype, json.dumps(overrides, sort_keys=True))


def reference_model(folder: Path) -> transformers.PreTrainedModel:
    """The checkpoint in transformers, float32 on the CPU, plain attention."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return model.eval()


def byte_tokenizer() -> Tokenizer:
    """One token a byte, then SPECIAL_TOKENS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


@cache
def _make(architecture: str, seed: int, shard_bytes: int, dtype: str, overrides: str) -> Path:
    folder = Path(tempfile.mkdtemp(dir=_FOLDERS.name, prefix=f"{architecture}-"))
    tokenizer = byte_tokenizer()
    end = tokenizer.get_vocab()[SPECIAL_TOKENS[0]]
    config_class, model_class = _CLASSES[architecture]
    fields = _COMMON | _OWN[architecture] | json.loads(overrides)
    model = model_class(config_class(vocab_size=tokenizer.get_vocab_size(), eos_token_id=end, **fields))
    _randomize(model, torch.Generator().manual_seed(seed))
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=shard_bytes or "5GB")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(1024)))
    return folder


@torch.no_grad()
def _randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.copy_(1.0 + 0.2 * torch.randn(parameter.shape, generator=generator))
        else:
            scale = 1.0 if "embed_tokens" in name else 1.5 * parameter.shape[-1] ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
