"""The training loop: AdamW on next tokens, a budget in seconds, a loss curve.

Shape suffixes: B rows of a batch, L tokens of a row, T = B (L - 1), V vocabulary.
"""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
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
from engine.models.train_builtin.data import Batch, Dataset, read_corpus, rendered, train_tokenizer
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
BATCHES_PER_STEP = 4
"""Rows of a batch have one width; a step has several batches, so that it sees conversations and long texts."""
NOTE_STEPS = 20
NUM_ASKED = 1000
"""Conversations whose answers are checked word for word at the end."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run. It ends when `seconds` or `steps` are used up, whichever is first."""

    seconds: float = 330.0
    steps: int = 1_000_000
    step_tokens: int = 131_072
    peak_lr: float = 3e-3
    warmup: float = 0.02
    """Share of the budget in which the learning rate rises; it falls to zero over the rest."""
    weight_decay: float = 0.1
    context: int = CONTEXT
    seed: int = 0


class Trainer:
    """Owns the weights, the optimizer and the curve of one run."""

    def __init__(self, recipe: Recipe, model: Llama, tensors: dict[str, Tensor]) -> None:
        self.recipe = recipe
        self.model = model
        self.tensors = tensors
        self.device = model.weights.norm_D.device
        groups = [
            {"params": [x for x in tensors.values() if x.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [x for x in tensors.values() if x.dim() == 1], "weight_decay": 0.0},
        ]
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.98), fused=fused)
        self.curve: list[dict[str, float]] = []

    def run(self, dataset: Dataset, held_out: Dataset) -> None:
        """Train until the budget is used up."""
        started, used, num_tokens = time.perf_counter(), 0.0, 0
        random = np.random.default_rng(self.recipe.seed)
        for step, batches in enumerate(self._steps(dataset, random), 1):
            loss = self._step(batches, used)
            num_tokens += sum(batch.tokens_BL.size for batch in batches)
            if step % NOTE_STEPS == 0 or step == self.recipe.steps:
                row = {"step": step, "tokens": num_tokens, "loss": loss.item()}  # waits for the device
                row |= {"seconds": round(time.perf_counter() - started, 2), "lr": self._lr(used)}
                if len(self.curve) % 10 == 0:
                    row["held_out_loss"] = self.evaluate(held_out)
                self.curve.append(row)
                log.info("%s", json.dumps(row))
            used = max(step / self.recipe.steps, (time.perf_counter() - started) / self.recipe.seconds)
            if used >= 1.0:
                return

    def evaluate(self, held_out: Dataset) -> float:
        """Mean loss of texts that were not trained on."""
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in self._epoch(held_out, np.random.default_rng(0)):
                total += self._loss(batch).item()
                count += int(batch.learned_BL[:, 1:].sum())
        return total / count

    def exact_share(self, dataset: Dataset) -> float:
        """Share of rows of which greedy decoding gives every learned token."""
        right, count = 0, 0
        with torch.no_grad():
            for batch in self._epoch(dataset, np.random.default_rng(0)):
                tokens_BL, learned_BL = self._on_device(batch)
                drawn_BL = self._logits(tokens_BL).argmax(-1).view(len(tokens_BL), -1)
                wrong_BL = (drawn_BL != tokens_BL[:, 1:]) & learned_BL[:, 1:]
                right += int((~wrong_BL.any(dim=1)).sum())
                count += len(tokens_BL)
        return right / count

    def _steps(self, dataset: Dataset, random: np.random.Generator) -> Iterator[list[Batch]]:
        """Batches of several widths for each step, epoch after epoch."""
        while True:
            batches = self._epoch(dataset, random)
            for first in range(0, len(batches), BATCHES_PER_STEP):
                yield batches[first : first + BATCHES_PER_STEP]

    def _epoch(self, dataset: Dataset, random: np.random.Generator) -> list[Batch]:
        batch_tokens = max(1, self.recipe.step_tokens // BATCHES_PER_STEP)
        return dataset.epoch(random).batches(batch_tokens, self.recipe.context, random)

    def _step(self, batches: list[Batch], used: float) -> Tensor:
        """One step of the optimizer; returns the mean loss of a learned token."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(used)
        num_learned = max(1, sum(int(batch.learned_BL[:, 1:].sum()) for batch in batches))
        mean = torch.zeros((), device=self.device)
        for batch in batches:
            loss = self._loss(batch) / num_learned
            loss.backward()
            mean += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.tensors.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return mean

    def _lr(self, used: float) -> float:
        return self.recipe.peak_lr * min(used / self.recipe.warmup, (1 - used) / (1 - self.recipe.warmup), 1.0)

    def _loss(self, batch: Batch) -> Tensor:
        """Sum of the cross entropy of the tokens that are to be learned."""
        tokens_BL, learned_BL = self._on_device(batch)
        logits_TV = self._logits(tokens_BL)
        loss_T = functional.cross_entropy(logits_TV, tokens_BL[:, 1:].flatten(), reduction="none")
        return (loss_T * learned_BL[:, 1:].flatten()).sum()

    def _logits(self, tokens_BL: Tensor) -> Tensor:
        """logits_TV that predict all tokens of the rows but the first."""
        inputs_BL = tokens_BL[:, :-1]
        num_rows, length = inputs_BL.shape
        positions_T = torch.arange(length, device=self.device).repeat(num_rows)
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden_TD = self.model.forward(inputs_BL.flatten(), positions_T, CausalRows(num_rows))
            return self.model.logits(hidden_TD)

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(batch.tokens_BL).to(self.device), torch.from_numpy(batch.learned_BL).to(self.device)


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
    asked = _asked(documents, tokenizer, recipe.seed)
    report = {
        "recipe": asdict(recipe),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "vocab_size": config.vocab_size,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "corpus_tokens": len(dataset.tokens_T),
        "held_out_loss": trainer.evaluate(held_out),
        "num_asked": len(asked.lengths_N),
        "exact_answers": trainer.exact_share(asked),
        "answers": {question: answer(trainer.model, tokenizer, question) for question in QUESTIONS},
        "curve": trainer.curve,
    }
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    manifest = json.loads(manifest_path(corpus).read_text())
    (out / "README.md").write_text(model_card(report, manifest))
    return report


def _asked(documents: list[dict[str, Any]], tokenizer: Tokenizer, seed: int) -> Dataset:
    """A sample of the questions that were trained on, each as the start of a conversation."""
    single = [each | {"weight": 1} for each in documents if len(each.get("turns", ())) == 2]
    chosen = np.random.default_rng(seed).permutation(len(single))[:NUM_ASKED]
    return replace(Dataset.encode([single[i] for i in chosen], tokenizer), is_chat_N=np.zeros(len(chosen), bool))


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
