"""The built-in model, so that Baton answers without a download: a small Llama-type checkpoint, and its chat format.

engine.models.train_builtin made it; builtin_model/README.md says from what.
"""

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "builtin_model"
SPECIAL_TOKENS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tokenizer_config(context: int) -> dict[str, Any]:
    """tokenizer_config.json of a model with this chat format."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[0],
        "pad_token": SPECIAL_TOKENS[0],
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
