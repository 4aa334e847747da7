"""The training loop: AdamW on next tokens, a budget in seconds, a loss curve.

Shape suffixes: B windows of a batch, L tokens of a window, T = B L, V vocabulary.
"""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from engine.models.builtin import SPECIAL_TOKENS
from engine.models.llama import Llama
from engine.models.train_builtin.card import model_card
from engine.models.train_builtin.corpus import manifest_path
from engine.models.train_builtin.data import Dataset, read_corpus, rendered, train_tokenizer
from engine.models.train_builtin.model import (
    CONTEXT,
    VOCAB_SIZE,
    CausalRows,
    build,
    initial_weights,
    save_weights,
    write_description,
)

log = logging.getLogger(__name__)

QUESTIONS = (
    "Hello!",
    "Who are you?",
    "What is Baton?",
    "What does os.path.join do?",
    "What does json.dumps do?",
    "what does len do",
    "How do I use random.shuffle?",
    "What is the re module for?",
    "What functions does math have?",
    "What is ValueError?",
    "Show an example of heapq.merge.",
    "What is 7 + 5?",
    "What does os.flobnicate do?",
)
HELD_OUT = 100
"""Every so many plain texts one is kept for validation."""
SHORT_CONTEXT, SHORT_SHARE = 1024, 0.7
"""Windows are short for the first share of the budget, and CONTEXT long for the rest."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run. It ends when `seconds` or `steps` are used up, whichever is first."""

    seconds: float = 330.0
    steps: int = 1_000_000
    batch_tokens: int = 131_072
    peak_lr: float = 3e-3
    warmup: float = 0.02
    """Share of the budget in which the learning rate rises; it falls to zero over the rest."""
    weight_decay: float = 0.1
    context: int = CONTEXT
    seed: int = 0
    compile: bool = False


class Trainer:
    """Owns the weights, the optimizer and the curve of one run."""

    def __init__(self, recipe: Recipe, model: Llama, tensors: dict[str, Tensor]) -> None:
        self.recipe = recipe
        self.model = model
        self.tensors = tensors
        groups = [
            {"params": [x for x in tensors.values() if x.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [x for x in tensors.values() if x.dim() == 1], "weight_decay": 0.0},
        ]
        fused = model.weights.norm_D.is_cuda
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.98), fused=fused)
        self.loss = torch.compile(self._loss) if recipe.compile else self._loss
        self.curve: list[dict[str, float]] = []

    def run(self, dataset: Dataset, held_out: Dataset) -> None:
        """Train until the budget is used up."""
        started, used, step, num_tokens = time.perf_counter(), 0.0, 0, 0
        random = np.random.default_rng(self.recipe.seed)
        while used < 1.0:
            length = min(self.recipe.context, SHORT_CONTEXT) if used < SHORT_SHARE else self.recipe.context
            for tokens_BL, learned_BL in self._batches(dataset, random, length):
                loss = self._step(tokens_BL, learned_BL, used)
                step, num_tokens = step + 1, num_tokens + tokens_BL.numel()
                if step % 20 == 0 or step == self.recipe.steps:
                    row = {"step": step, "tokens": num_tokens, "loss": loss.item()}  # waits for the device
                    seconds = time.perf_counter() - started
                    self._note(row | {"seconds": round(seconds, 2), "lr": self._lr(used)}, held_out)
                used = max(step / self.recipe.steps, (time.perf_counter() - started) / self.recipe.seconds)
                if used >= 1.0 or (length < self.recipe.context and used >= SHORT_SHARE):
                    break

    def evaluate(self, held_out: Dataset) -> float:
        """Mean loss on texts that were not trained on."""
        length = min(SHORT_CONTEXT, self.recipe.context, len(held_out.tokens_T) - 1)
        with torch.no_grad():
            batches = self._batches(held_out, np.random.default_rng(0), length)
            return float(np.mean([self._loss(*batch).item() for batch in batches]))

    def _note(self, row: dict[str, float], held_out: Dataset) -> None:
        if len(self.curve) % 10 == 0:
            row["held_out_loss"] = self.evaluate(held_out)
        self.curve.append(row)
        log.info("%s", json.dumps(row))

    def _step(self, tokens_BL: Tensor, learned_BL: Tensor, used: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(used)
        loss: Tensor = self.loss(tokens_BL, learned_BL)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.tensors.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _lr(self, used: float) -> float:
        return self.recipe.peak_lr * min(used / self.recipe.warmup, (1 - used) / (1 - self.recipe.warmup), 1.0)

    def _batches(self, dataset: Dataset, random: np.random.Generator, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.model.weights.norm_D.device
        for tokens, learned in dataset.epoch(random).batches(max(1, self.recipe.batch_tokens // length), length):
            yield torch.from_numpy(tokens).to(device), torch.from_numpy(learned).to(device)

    def _loss(self, tokens_BL: Tensor, learned_BL: Tensor) -> Tensor:
        """Mean cross entropy of the tokens that are to be learned."""
        inputs_BL, targets_T = tokens_BL[:, :-1], tokens_BL[:, 1:].flatten()
        num_rows, length = inputs_BL.shape
        positions_T = torch.arange(length, device=inputs_BL.device).repeat(num_rows)
        with torch.autocast(inputs_BL.device.type, torch.bfloat16):
            hidden_TD = self.model.forward(inputs_BL.flatten(), positions_T, CausalRows(num_rows))
            logits_TV = self.model.logits(hidden_TD)
        loss_T = functional.cross_entropy(logits_TV, targets_T, reduction="none")
        learned_T = learned_BL[:, 1:].flatten()
        return (loss_T * learned_T).sum() / learned_T.sum().clamp(min=1)


def train(corpus: Path, out: Path, device: torch.device, recipe: Recipe) -> dict[str, Any]:
    """Train on `corpus` (with its manifest beside it) and write a checkpoint folder, training.json and README.md.

    Returns what training.json says.
    """
    torch.manual_seed(recipe.seed)
    documents = read_corpus(corpus)
    plain = [index for index, document in enumerate(documents) if "text" in document]
    kept = set(plain[::HELD_OUT])
    tokenizer = train_tokenizer([rendered(document) for document in documents], VOCAB_SIZE)
    config = write_description(out, tokenizer)
    held_out = Dataset.encode([documents[index] | {"weight": 1} for index in sorted(kept)], tokenizer)
    dataset = Dataset.encode([each for index, each in enumerate(documents) if index not in kept], tokenizer)
    log.info("%d documents, %d tokens", len(documents), len(dataset.tokens_T))
    tensors = initial_weights(config, device, recipe.seed)
    trainer = Trainer(recipe, build(config, tensors), tensors)
    trainer.run(dataset, held_out)
    save_weights(out / "model.safetensors", config, tensors)
    report = {
        "recipe": asdict(recipe),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "vocab_size": config.vocab_size,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "corpus_tokens": len(dataset.tokens_T),
        "held_out_loss": trainer.evaluate(held_out),
        "answers": {question: answer(trainer.model, tokenizer, question) for question in QUESTIONS},
        "curve": trainer.curve,
    }
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    manifest = json.loads(manifest_path(corpus).read_text())
    (out / "README.md").write_text(model_card(report, manifest))
    return report


@torch.no_grad()
def answer(model: Llama, tokenizer: Tokenizer, question: str, max_tokens: int = 64) -> str:
    """The likeliest answer, one whole forward pass a token."""
    end = tokenizer.token_to_id(SPECIAL_TOKENS[0])
    ids = tokenizer.encode(rendered({"turns": (question, "")})).ids[:-1]
    num_prompt, device = len(ids), model.weights.norm_D.device
    while len(ids) < num_prompt + max_tokens:
        hidden_TD = model.forward(
            torch.tensor(ids, device=device), torch.arange(len(ids), device=device), CausalRows(1)
        )
        ids.append(int(model.logits(hidden_TD[-1:]).argmax()))
        if ids[-1] == end:
            break
    return str(tokenizer.decode(ids[num_prompt:]))
