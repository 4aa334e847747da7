"""From documents to batches: the tokenizer, the tokens of every document, and new rows for each epoch.

Shape suffixes: N documents, T tokens, B rows of a batch, L tokens of a row.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.models.builtin import SPECIAL_TOKENS

END, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS
IntArray = npt.NDArray[np.int64]
GOES_ON = 0.35
"""Share of the conversations that go on with another one in the same row."""
WIDTHS = np.array([size for power in range(5, 13) for size in (2**power, 3 * 2 ** (power - 1))])
"""32, 48, 64, 96 ... 6144: rows are padded to the next one, a sixth of a batch on average."""


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
class Batch:
    """Rows of one width; the first token of a row is given, every other one may be learned."""

    tokens_BL: npt.NDArray[np.int64]
    learned_BL: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Every document once, as tokens. `learned_T` marks the tokens that the model is to predict: not the questions."""

    tokens_T: npt.NDArray[np.uint16]
    learned_T: npt.NDArray[np.bool_]
    starts_N: IntArray
    lengths_N: IntArray
    weights_N: npt.NDArray[np.float64]
    is_chat_N: npt.NDArray[np.bool_]

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
            is_chat_N=np.array(["turns" in document for document in documents]),
        )

    def epoch(self, random: np.random.Generator) -> "Rows":
        """All documents in a new order, each as often as its weight says.

        A row is one document, as it will be when it is asked; or several conversations as one long one. Rows that
        mixed unrelated documents would leave the model helpless at the start of a sequence, where it is used.
        """
        whole = np.floor(self.weights_N)
        times_N = (whole + (random.random(len(whole)) < self.weights_N - whole)).astype(np.int64)
        order = random.permutation(np.repeat(np.arange(len(times_N)), times_N))
        is_chat = self.is_chat_N[order]
        goes_on = is_chat[1:] & is_chat[:-1] & (random.random(len(order) - 1) < GOES_ON)
        lengths = self.lengths_N[order]
        ends = np.cumsum(lengths)
        source_T = np.repeat(self.starts_N[order] - (ends - lengths), lengths) + np.arange(ends[-1])
        bounds = np.concatenate(([0], ends[:-1][~goes_on], ends[-1:]))
        return Rows(self.tokens_T[source_T], self.learned_T[source_T], bounds)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows end to end; row i is tokens_T[bounds[i] : bounds[i + 1]]."""

    tokens_T: npt.NDArray[np.uint16]
    learned_T: npt.NDArray[np.bool_]
    bounds: IntArray

    def batches(self, batch_tokens: int, context: int, random: np.random.Generator) -> list[Batch]:
        """All rows, those of similar length together, in batches of about `batch_tokens`, in a random order.

        A row longer than `context` is cut.
        """
        starts, lengths = self.bounds[:-1], np.minimum(np.diff(self.bounds), context + 1)
        widths = np.minimum(WIDTHS[np.searchsorted(WIDTHS, lengths - 1)], context)
        found = []
        for width in np.unique(widths):
            rows = np.flatnonzero(widths == width)
            for part in np.array_split(rows, -(-len(rows) * width // batch_tokens)):
                found.append(self._batch(starts[part], lengths[part], int(width)))
        return [found[index] for index in random.permutation(len(found))]

    def _batch(self, starts: IntArray, lengths: IntArray, width: int) -> Batch:
        offsets = np.arange(width + 1)
        inside = offsets < lengths[:, None]
        index_BL = np.where(inside, starts[:, None] + offsets, 0)
        return Batch(np.where(inside, self.tokens_T[index_BL], 0).astype(np.int64), self.learned_T[index_BL] & inside)


def _learned(tokens: npt.NDArray[np.uint16], given: list[int], assistant: int) -> npt.NDArray[np.bool_]:
    """False from each token of `given` up to and including the next `assistant` token."""
    marks = np.isin(tokens, [*given, assistant])
    last_mark = np.maximum.accumulate(np.where(marks, np.arange(len(tokens)), 0))
    learned: npt.NDArray[np.bool_] = ~np.isin(tokens[last_mark], given) & (tokens != assistant)
    return learned
