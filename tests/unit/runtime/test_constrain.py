"""Rows with a grammar beside rows without, drawn every way; and an engine whose answers are always valid."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.core.types import FinishReason, Grammar, GrammarKind, Request, Sampling, token_buffer
from engine.grammar.compiler import Compiler
from engine.grammar.vocabulary import load_vocabulary
from engine.runtime.build import Engine, build_engine
from engine.runtime.config import EngineConfig
from engine.runtime.constrain import HostTokens
from engine.runtime.rows import RowTable
from engine.runtime.sampler import draw
from router.text.tokenizer import Tokenizer
from tests.fakes.checkpoints import tiny_checkpoint
from tests.unit.runtime.tiny import new_row

FOLDER = tiny_checkpoint("llama")
VOCAB = json.loads((FOLDER / "config.json").read_text())["vocab_size"]
END = json.loads((FOLDER / "config.json").read_text())["eos_token_id"]
TOKENIZER = Tokenizer.load(FOLDER)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
JSON = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
DIGITS = Grammar(GrammarKind.REGEX, "[0-9]{4}")
STOPS = {"stop_token_ids": (END,)}


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    compiler = Compiler(lambda: load_vocabulary(FOLDER, VOCAB))
    yield compiler
    compiler.close()


class Rows:
    """A table of rows that draw from random logits, all in one step each."""

    def __init__(self, compiler: Compiler | None, *settings: Sampling, tokens: tuple[int, ...] = (1, 2, 3)) -> None:
        self.table = RowTable(8, 128, 16, 0, torch.device("cpu"), compiler)
        self.num = len(settings)
        for id, sampling in enumerate(settings):
            self.table._add(new_row(id, list(tokens), sampling, num_prompt=3))
        self.position = len(tokens)
        self.rng = torch.Generator().manual_seed(4)

    def step(self) -> tuple[list[int], dict[int, str]]:
        logits_SV = torch.randn(1, VOCAB, generator=self.rng).expand(self.num, -1) * 3
        slots = self.table.slots(list(range(self.num)))
        before = logits_SV.clone()
        tokens_S = draw(logits_SV, self.table, slots, [self.position] * self.num)
        assert torch.equal(logits_SV, before)
        self.table.tokens_RC[slots, self.position] = tokens_S.int()
        self.position += 1
        return tokens_S.tolist(), self.table.grammars.drew(slots, HostTokens(tokens_S, self.table.device))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0, **STOPS),
        Sampling(temperature=1.3, seed=3, **STOPS),
        Sampling(temperature=0.8, top_k=2, top_p=0.4, min_p=0.2, seed=1, **STOPS),
        Sampling(temperature=1.0, repetition_penalty=1.5, presence_penalty=2.0, logit_bias=((END, 100.0),), **STOPS),
        Sampling(temperature=1.0, min_tokens=20, **STOPS),
    ],
)
def test_the_answer_follows_and_ends_where_the_grammar_does(compiler: Compiler, sampling: Sampling) -> None:
    rows = Rows(compiler, replace(sampling, grammar=DIGITS))
    drawn = [rows.step()[0][0] for _ in range(6)]
    text = TOKENIZER.decode(drawn[:4])
    assert len(text) == 4 and text.isdigit()
    assert drawn[4:] == [END, END], "the step that was planned before the end was known draws the end again"


def test_a_longer_answer_is_made_where_min_tokens_asks_for_it(compiler: Compiler) -> None:
    grammar = Grammar(GrammarKind.REGEX, "[0-9]{2,9}")
    biased = Sampling(temperature=0.0, min_tokens=5, logit_bias=((END, 100.0),), grammar=grammar, **STOPS)
    rows = Rows(compiler, biased, replace(biased, min_tokens=0))
    drawn = [rows.step()[0] for _ in range(6)]
    assert [tokens[0] for tokens in drawn].index(END) == 5
    assert [tokens[1] for tokens in drawn].index(END) == 2


def test_neighbours_draw_as_if_alone(compiler: Compiler) -> None:
    free = [Sampling(temperature=0.0), Sampling(seed=4), Sampling(temperature=0.0, presence_penalty=1.0)]
    together = Rows(compiler, *free, *(replace(sampling, grammar=JSON, **STOPS) for sampling in free))
    alone = Rows(compiler, *free)
    for _ in range(12):
        tokens = together.step()[0]
        assert tokens[:3] == alone.step()[0]


def test_a_row_that_comes_back_goes_on_where_it_stood(compiler: Compiler) -> None:
    sampling = Sampling(seed=9, grammar=JSON, **STOPS)
    whole = Rows(compiler, sampling)
    drawn = [whole.step()[0][0] for _ in range(14)]
    resumed = Rows(compiler, sampling, tokens=(1, 2, 3, *drawn[:6]))
    for _ in range(6):
        torch.randn(1, VOCAB, generator=resumed.rng)
    assert [resumed.step()[0][0] for _ in range(8)] == drawn[6:]


def test_a_row_whose_grammar_cannot_be_followed_is_refused_and_no_other(compiler: Compiler) -> None:
    broken = replace(Sampling(), grammar=Grammar(GrammarKind.REGEX, "("))
    rows = Rows(compiler, broken, replace(Sampling(), grammar=DIGITS), Sampling())
    for _ in range(2):
        tokens, refused = rows.step()
        assert list(refused) == [0] and "unclosed" in refused[0]
        assert TOKENIZER.decode(tokens[1:2]).isdigit()
    _, refused = Rows(None, replace(Sampling(), grammar=DIGITS)).step()
    assert "no tokenizer" in refused[0]
    _, refused = Rows(compiler, replace(Sampling(), grammar=DIGITS), tokens=(1, 2, 3, 60, 61)).step()
    assert "do not follow" in refused[0]


# ---------------------------------------------------------------- a whole engine


def generate(engine: Engine, settings: list[Sampling], prompt: str = "an object: ", first: int = 0) -> dict:
    """Texts and ends of requests that run side by side."""
    tokens = TOKENIZER.encode(prompt)
    for id, sampling in enumerate(settings, first):
        engine.core.submit(Request(id, token_buffer(tokens), len(tokens), sampling, 0.0, math.inf))
    drawn: dict[int, list[int]] = {id: [] for id in range(first, first + len(settings))}
    ends = {}
    while len(ends) < len(settings):
        result = engine.core.step(0.0)
        for id, token in zip(result.ids, result.tokens, strict=True):
            drawn[id].append(token)
        ends |= {finished.id: finished for finished in result.finished}
        engine.core.check_integrity()
    return {id: (TOKENIZER.decode(drawn[id]), ends[id]) for id in drawn}


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = build_engine(EngineConfig(str(FOLDER), device="cpu", page_size=8, kv_memory=8 << 20, max_step_tokens=24))
    yield engine
    engine.close()


SETTINGS = [
    Sampling(max_tokens=120, temperature=temperature, seed=seed, min_tokens=minimum, grammar=JSON, **STOPS)
    for seed, (temperature, minimum) in enumerate([(0.0, 0), (1.0, 0), (2.0, 0), (1.0, 119)])
]


def test_every_answer_of_an_engine_is_valid(engine: Engine) -> None:
    free = [Sampling(max_tokens=30, temperature=0.0), Sampling(max_tokens=30, seed=3)]
    want = [generate(engine, [sampling], first=900 + n)[900 + n][0] for n, sampling in enumerate(free)]
    answers = generate(engine, SETTINGS + free)
    for text, end in list(answers.values())[: len(SETTINGS)]:
        value = json.loads(text)
        assert set(value) == {"name", "n"} and len(value["name"]) <= 6 and 0 <= value["n"] <= 99
        assert (end.reason, end.stop_token) == (FinishReason.STOP, END)
    assert [text for text, _ in list(answers.values())[len(SETTINGS) :]] == want


def test_an_answer_that_is_too_long_says_so(engine: Engine) -> None:
    ((text, end),) = generate(engine, [replace(SETTINGS[1], max_tokens=4)]).values()
    assert end.reason is FinishReason.LENGTH and len(text) >= 1


def test_preemption_leaves_answers_as_they_are(engine: Engine) -> None:
    settings = [replace(sampling, temperature=0.0) for sampling in SETTINGS * 2]
    want = {id: text for id, (text, _) in generate(engine, settings).items()}
    page_bytes = engine.pool.layout.page_bytes
    small = build_engine(
        EngineConfig(str(FOLDER), device="cpu", page_size=8, kv_memory=16 * page_bytes, max_model_len=96)
    )
    got = generate(small, [replace(sampling, max_tokens=60) for sampling in settings])
    assert small.core.load(0.0).num_preempted > 0, "the pool was large enough"
    assert all(want[id].startswith(text) for id, (text, _) in got.items())
    small.close()


def test_a_refused_request_ends_with_its_reason_and_frees_its_pages(engine: Engine) -> None:
    broken = replace(SETTINGS[0], grammar=Grammar(GrammarKind.LARK, "start: nothing"))
    answers = generate(engine, [broken, SETTINGS[1]])
    assert answers[0][1].reason is FinishReason.REFUSED and "nothing" in answers[0][1].message
    json.loads(answers[1][0])
    while engine.core.has_work:
        engine.core.step(0.0)
    assert set(state for state, count in engine.core.pages_by_state().items() if count) <= {"free", "cached"}


def test_random_weights_without_a_tokenizer_refuse(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((FOLDER / "config.json").read_text())
    config = EngineConfig(str(tmp_path), device="cpu", page_size=8, kv_memory=4 << 20, random_weights=True)
    engine = build_engine(config)
    ((_, end),) = generate(engine, [SETTINGS[0]]).values()
    assert end.reason is FinishReason.REFUSED and "tokenizer.json" in end.message
    engine.close()
