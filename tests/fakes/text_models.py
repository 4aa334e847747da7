"""Small tokenizers of both families, as checkpoint folders that a router can serve. No torch, no weights."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from router.text.model import ServedModel, load_served_model

CORPUS = (
    "the quick brown fox jumps over the lazy dog and the dog sleeps. STOP here, then go on: one two three four five.\n"
    "naïve café über straße, 你好世界, привет мир, 🙂🙃👩‍🚀 emoji and e\u0301 combining marks\n"
) * 8
SPECIALS = ("<|begin|>", "<|end|>", "<|role|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'nobody' %}{{ raise_exception('unknown role') }}{% endif %}"
    "<|role|>{{ message['role'] }}\n{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|role|>assistant\n{% endif %}{% if think %}hm{% endif %}"
)
FAMILIES = ("byte_level", "sentencepiece")


def write_checkpoint(folder: Path, tokenizer: Tokenizer, tokenizer_config: dict[str, Any], **config: Any) -> Path:
    """A folder with all that a router reads of a checkpoint."""
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|end|>")
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size() + 3,  # padded, as most checkpoints are
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "eos_token_id": end,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(fields | config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def tokenizer_config(**fields: Any) -> dict[str, Any]:
    """tokenizer_config.json of either family."""
    own = {"bos_token": SPECIALS[0], "eos_token": SPECIALS[1], "chat_template": TEMPLATE}
    return own | fields


@cache
def byte_level_tokenizer() -> str:
    """Byte-level BPE with merges and a BOS, like Llama 3, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    split = Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    _add_specials(tokenizer)
    return str(tokenizer.to_str())


@cache
def sentencepiece_tokenizer() -> str:
    """Sentencepiece-style BPE with byte fallback, like Llama 2 and Mistral, as JSON."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(vocab_size=160, show_progress=False)
    trained.train_from_iterator([word for word in CORPUS.split(" ") if word.isascii()], trainer)
    learned = json.loads(trained.to_str())["model"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["<unk>", "\u2581"] + list(learned["vocab"])
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _add_specials(tokenizer)
    return str(tokenizer.to_str())


def _add_specials(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIALS])
    tokenizer.add_tokens([AddedToken("<tool call>", normalized=False, special=False)])
    bos = SPECIALS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def write_family(folder: Path, family: str, **config: Any) -> Path:
    """A checkpoint folder of one of FAMILIES."""
    spelled = byte_level_tokenizer() if family == "byte_level" else sentencepiece_tokenizer()
    return write_checkpoint(folder, Tokenizer.from_str(spelled), tokenizer_config(), **config)


def served_model(folder: Path, family: str = "byte_level", **config: Any) -> ServedModel:
    """The same, loaded and named "tiny"."""
    return load_served_model(write_family(folder, family, **config), "tiny")


@contextmanager
def model_of_its_own(family: str = "byte_level", **config: Any) -> Iterator[ServedModel]:
    """The same in a folder that lasts as long, with the process that tries grammars: nothing in it changes, so many
    services may have it one after the other.
    """
    with tempfile.TemporaryDirectory(prefix="baton-model-") as folder:
        model = served_model(Path(folder), family, **config)
        yield model
        model.grammars.close()
