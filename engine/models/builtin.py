"""The built-in model: a small Llama-type checkpoint folder, so that Baton serves without a download.

An installation without trained weights (engine.models.train_builtin) makes itself random ones: they show that tokens
flow and that they are the right ones, not that they make sense.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from engine.models.registry import load_config
from engine.models.weights import parameters

VERSION = 1
"""Part of the folder's name: a change of anything below makes a new folder."""

SPECIAL_TOKENS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MAX_POSITION = 8192
TRAINED = Path(__file__).parent / "builtin_model"


def builtin_path() -> Path:
    """The built-in model's folder: the trained one, else a random one made at the first call (about a second).

    What is made appears whole or not at all: it is written beside its place and renamed into it, so several processes
    may ask at once.
    """
    if TRAINED.is_dir():
        return TRAINED
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baton"
    folder = cache / f"builtin-{VERSION}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=cache, prefix="builtin-"))
        try:
            write_builtin(draft)
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first otherwise
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def write_builtin(folder: Path) -> None:
    """Write config, tokenizer and seeded random weights into an empty `folder`."""
    tokenizer = byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.get_vocab()[SPECIAL_TOKENS[0]]
    _write_json(folder / "config.json", model_config(tokenizer.get_vocab_size(), end))
    _write_json(folder / "generation_config.json", {"eos_token_id": end, "do_sample": False})
    _write_json(folder / "tokenizer_config.json", tokenizer_config())
    _write_weights(folder)


def byte_tokenizer() -> Tokenizer:
    """One token a byte, then SPECIAL_TOKENS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def model_config(vocab_size: int, end: int) -> dict[str, Any]:
    """config.json of a model that decodes quickly on a CPU: 3 million weights."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITION,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": end,
        "dtype": "float32",
    }


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json with the chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[0],
        "pad_token": SPECIAL_TOKENS[0],
        "model_max_length": MAX_POSITION,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _write_weights(folder: Path) -> None:
    """Uniform weights from whole numbers, so that every machine draws the same bits. Standard deviation about 0.07."""
    import torch  # Here, because a router asks for the folder too, and does without torch.
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(VERSION)
    tensors = {}
    for parameter in parameters(load_config(folder)).values():
        for source in parameter.sources:
            if source.name.endswith("norm.weight"):
                tensors[source.name] = torch.ones(source.shape)
            else:
                whole = torch.randint(-(1 << 15), 1 << 15, source.shape, generator=generator)
                tensors[source.name] = whole.float() / (1 << 18)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
