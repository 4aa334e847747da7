"""Chat templates render as in transformers, and their refusals are the client's errors."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from engine.core.errors import CheckpointError, InvalidRequest
from router.text.template import ChatTemplate
from router.text.tokenizer import Tokenizer
from tests.fakes.text_models import write_family

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi <b>"}]


def load(folder: Path) -> ChatTemplate | None:
    return ChatTemplate.load(folder, Tokenizer.load(folder).special_tokens)


def test_renders_as_transformers_does(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "byte_level")
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = reference.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    template = load(folder)
    assert template is not None and template.render(MESSAGES) == expected


def test_template_arguments_reach_the_template(tmp_path: Path) -> None:
    template = load(write_family(tmp_path, "byte_level"))
    assert template is not None and template.render(MESSAGES, {"think": True}).endswith("assistant\nhm")


@pytest.mark.parametrize("name", ["messages", "chat_template", "add_generation_prompt"])
def test_a_client_cannot_replace_what_the_door_passes(tmp_path: Path, name: str) -> None:
    template = load(write_family(tmp_path, "byte_level"))
    assert template is not None
    with pytest.raises(InvalidRequest, match=name):
        template.render(MESSAGES, {name: "x"})


def test_a_template_s_refusal_is_an_invalid_request(tmp_path: Path) -> None:
    template = load(write_family(tmp_path, "byte_level"))
    assert template is not None
    with pytest.raises(InvalidRequest, match="unknown role") as caught:
        template.render([{"role": "nobody", "content": ""}])
    assert caught.value.param == "messages"


def test_messages_that_are_nested_too_deeply(tmp_path: Path) -> None:
    """The arguments of a call are a text of their own, which no depth of the body's JSON bounds."""
    template, deep = load(write_family(tmp_path, "byte_level")), {}
    for _ in range(900):
        deep = {"a": deep}
    assert template is not None
    with pytest.raises(InvalidRequest, match="too deeply"):
        template.render([*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [deep]}])


def test_a_template_cannot_leave_its_sandbox() -> None:
    template = ChatTemplate("{{ messages.__class__.__mro__ }}", {})
    with pytest.raises(InvalidRequest):
        template.render(MESSAGES)


def test_where_a_template_is_found(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "byte_level")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "rag", "template": "no"}, {"name": "default", "template": "listed"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    template = load(folder)
    assert template is not None and template.render(MESSAGES) == "listed"

    (folder / "chat_template.jinja").write_text("own file")
    template = load(folder)
    assert template is not None and template.render(MESSAGES) == "own file"

    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": None}))
    assert load(folder) is None

    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": 5}))
    with pytest.raises(CheckpointError, match="chat_template should be a string"):
        load(folder)
