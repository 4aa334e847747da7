"""What a client sees of the tokens: text, tokens, log probabilities and the reason of the end."""

from pathlib import Path

import pytest

from engine.core.types import FinishReason, TokenLogprob
from router.api import Delta
from router.text.output import TextDelta, TextStream
from router.text.tokenizer import Tokenizer
from tests.fakes.text_models import served_model


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return served_model(tmp_path).tokenizer


def byte_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token a byte, so that every boundary is inside a word and a character."""
    return [tokenizer.pieces.pieces.index(bytes([byte])) for byte in text.encode()]


def play(stream: TextStream, tokens: list[int], *, logprobs: bool = False, reason: FinishReason) -> list[TextDelta]:
    out = []
    for index, token in enumerate(tokens):
        rows = (TokenLogprob(token, -1.0, ((token, -1.0),)),) if logprobs else ()
        finish = reason if index == len(tokens) - 1 else None
        out.append(stream.push(Delta((token,), rows, finish_reason=finish)))
        if out[-1].finish is not None:
            break
    return out


def stream_of(tokenizer: Tokenizer, *stops: str, min_tokens: int = 0) -> TextStream:
    return TextStream(tokenizer.pieces, stops, min_tokens=min_tokens, starts_text=True)


def test_a_stop_string_ends_the_answer_before_the_router_does(tokenizer: Tokenizer) -> None:
    tokens = byte_tokens(tokenizer, "go éSTOP and on")
    out = play(stream_of(tokenizer, "STOP"), tokens, reason=FinishReason.LENGTH)
    assert "".join(delta.text for delta in out) == "go é"
    assert (out[-1].finish, out[-1].stopped_by) == (FinishReason.STOP, "STOP")
    assert sum(len(delta.tokens) for delta in out) == len("go éSTOP".encode())


def test_tokens_after_a_stop_string_in_one_delta_are_dropped(tokenizer: Tokenizer) -> None:
    tokens = byte_tokens(tokenizer, "a!b")
    out = stream_of(tokenizer, "!").push(Delta(tuple(tokens), finish_reason=FinishReason.LENGTH))
    assert (out.text, out.tokens, out.finish, out.stopped_by) == ("a", tuple(tokens[:2]), FinishReason.STOP, "!")


def test_a_stop_token_ends_it_without_its_text(tokenizer: Tokenizer) -> None:
    tokens = byte_tokens(tokenizer, "ab")
    out = stream_of(tokenizer).push(Delta(tuple(tokens), finish_reason=FinishReason.STOP, stop_token=tokens[1]))
    assert (out.text, out.tokens, out.stopped_by) == ("a", tuple(tokens), tokens[1])


def test_what_was_held_back_comes_at_the_end(tokenizer: Tokenizer) -> None:
    out = play(stream_of(tokenizer, "STOP"), byte_tokens(tokenizer, "a ST"), reason=FinishReason.LENGTH)
    assert [delta.text for delta in out] == ["a", " ", "", "ST"]
    assert out[-1].finish is FinishReason.LENGTH


def test_half_a_character_at_the_end_becomes_a_replacement(tokenizer: Tokenizer) -> None:
    out = play(stream_of(tokenizer), byte_tokens(tokenizer, "aé")[:2], reason=FinishReason.LENGTH)
    assert "".join(delta.text for delta in out) == "a\ufffd"


def test_stop_strings_wait_for_min_tokens(tokenizer: Tokenizer) -> None:
    out = play(stream_of(tokenizer, "!", min_tokens=3), byte_tokens(tokenizer, "a!b!c"), reason=FinishReason.LENGTH)
    assert "".join(delta.text for delta in out) == "a!b"


def test_logprobs_come_with_their_text_and_never_from_a_held_stop_string(tokenizer: Tokenizer) -> None:
    tokens = byte_tokens(tokenizer, "aéST")
    out = play(stream_of(tokenizer, "STOP"), [*tokens, *byte_tokens(tokenizer, "OP")], logprobs=True,
               reason=FinishReason.LENGTH)  # fmt: skip
    assert [[row.piece for row in delta.logprobs] for delta in out] == [[b"a"], [], [b"\xc3", b"\xa9"], [], [], [], []]
    assert [row.start for delta in out for row in delta.logprobs] == [0, 1, 1]


def test_all_logprobs_are_out_at_the_end(tokenizer: Tokenizer) -> None:
    out = play(stream_of(tokenizer, "STOP"), byte_tokens(tokenizer, "a ST"), logprobs=True, reason=FinishReason.LENGTH)
    assert [[row.piece for row in delta.logprobs] for delta in out] == [[b"a"], [b" "], [], [b"S", b"T"]]
    assert out[0].logprobs[0].top == ((out[0].tokens[0], -1.0, b"a"),)


def test_prompt_only_drops_the_drawn_token(tokenizer: Tokenizer) -> None:
    (token,) = byte_tokens(tokenizer, "a")
    out = stream_of(tokenizer).prompt_only(
        Delta((token,), prompt_logprobs=(TokenLogprob(token, -2.0),), cached_tokens=0)
    )
    assert (out.text, out.tokens, out.finish, out.cached_tokens) == ("", (), FinishReason.LENGTH, 0)
    assert [row.logprob for row in out.prompt_logprobs] == [-2.0]
