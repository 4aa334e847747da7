"""From documents to batches: the tokenizer, the tokens of every document, and a shuffled stream for each epoch.

Shape suffixes: N documents, T tokens, B windows of a batch, L tokens of a window.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.models.builtin import SPECIAL_TOKENS

END, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS
IntArray = npt.NDArray[np.int64]


def read_corpus(path: Path) -> list[dict[str, Any]]:
    """Documents as engine.models.train_builtin.corpus writes them."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def rendered(document: dict[str, Any]) -> str:
    """A document as the model sees it: plain text, or turns as the chat template writes them; closed by END."""
    if "text" in document:
        return f"{document['text']}{END}"
    pairs = zip(document["turns"][::2], document["turns"][1::2], strict=True)
    system = f"{SYSTEM}{document['system']}{END}" if "system" in document else ""
    return system + "".join(f"{USER}{ask}{END}{ASSISTANT}{answer}{END}" for ask, answer in pairs)


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909); every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True, slots=True)
class Dataset:
    """Every document once, as tokens. `learned_T` marks the tokens that the model is to predict: not the questions."""

    tokens_T: npt.NDArray[np.uint16]
    learned_T: npt.NDArray[np.bool_]
    starts_N: IntArray
    lengths_N: IntArray
    weights_N: npt.NDArray[np.float64]

    @classmethod
    def encode(cls, documents: list[dict[str, Any]], tokenizer: Tokenizer) -> "Dataset":
        """Tokens of `documents`, in their order."""
        vocab = tokenizer.get_vocab()
        given, assistant = [vocab[SYSTEM], vocab[USER]], vocab[ASSISTANT]
        pieces = [np.array(each.ids, np.uint16) for each in tokenizer.encode_batch([*map(rendered, documents)])]
        lengths_N = np.array([len(piece) for piece in pieces])
        return cls(
            tokens_T=np.concatenate(pieces),
            learned_T=np.concatenate([_learned(piece, given, assistant) for piece in pieces]),
            starts_N=np.cumsum(lengths_N) - lengths_N,
            lengths_N=lengths_N,
            weights_N=np.array([document["weight"] for document in documents], float),
        )

    def epoch(self, random: np.random.Generator) -> "Stream":
        """All documents in a new order, each as often as its weight says."""
        whole = np.floor(self.weights_N)
        times_N = (whole + (random.random(len(whole)) < self.weights_N - whole)).astype(np.int64)
        order = random.permutation(np.repeat(np.arange(len(times_N)), times_N))
        lengths = self.lengths_N[order]
        bounds = np.concatenate(([0], np.cumsum(lengths)))
        source_T = np.repeat(self.starts_N[order] - bounds[:-1], lengths) + np.arange(bounds[-1])
        return Stream(self.tokens_T[source_T], self.learned_T[source_T], bounds)


@dataclass(frozen=True, slots=True)
class Stream:
    """Documents end to end; document i is tokens_T[bounds[i] : bounds[i + 1]]."""

    tokens_T: npt.NDArray[np.uint16]
    learned_T: npt.NDArray[np.bool_]
    bounds: IntArray

    def batches(self, batch: int, length: int) -> Iterator[tuple[IntArray, npt.NDArray[np.bool_]]]:
        """(tokens_BL+1, learned_BL+1): windows that start where a document starts, as a conversation does."""
        starts = np.array(list(self._window_starts(length)), np.int64)
        for first in range(0, len(starts), batch):
            index_BL = starts[first : first + batch, None] + np.arange(length + 1)
            yield self.tokens_T[index_BL].astype(np.int64), self.learned_T[index_BL]

    def _window_starts(self, length: int) -> Iterator[int]:
        start, last = 0, len(self.tokens_T) - length - 1
        while start <= last:
            yield start
            cut = int(self.bounds[np.searchsorted(self.bounds, start + length, side="right") - 1])
            start = cut if cut > start else start + length  # a document that fills the window is continued


def _learned(tokens: npt.NDArray[np.uint16], given: list[int], assistant: int) -> npt.NDArray[np.bool_]:
    """False from each token of `given` up to and including the next `assistant` token."""
    marks = np.isin(tokens, [*given, assistant])
    last_mark = np.maximum.accumulate(np.where(marks, np.arange(len(tokens)), 0))
    learned: npt.NDArray[np.bool_] = ~np.isin(tokens[last_mark], given) & (tokens != assistant)
    return learned
