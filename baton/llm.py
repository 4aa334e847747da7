"""`baton.LLM`: an engine inside this process, for scripts. No server, no router, no second process."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, Unpack, cast

from pydantic import ValidationError

from baton.driver import Driver
from baton.results import Answer, FormOptions, Logprob, Message, Prompt, Result, SamplingOptions, Usage
from baton.wire import is_chat
from engine.models.hub import resolve_model
from engine.runtime.build import build_engine
from engine.runtime.config import EngineConfig
from router.doors.config import DoorConfig
from router.doors.prompts import chat_tokens, text_tokens, tokens_of_ids
from router.doors.sampling import invalid
from router.doors.session import Answer as Collected
from router.doors.session import Ask, Choice, choices_of
from router.doors.structured import StructuredFields
from router.text.model import load_served_model
from router.text.output import TokenText

DEFAULT_MAX_TOKENS = 16


class LLM:
    """A model in this process. Not for several threads at once.

        with LLM("Qwen/Qwen3-0.6B") as llm:
            for result in llm.generate_batch(["one", "two"], max_tokens=32, temperature=0.0):
                print(result.text)

    Sequences share steps and cached prefixes, across calls too.
    """

    def __init__(self, model: str = "builtin", **settings: Any) -> None:
        """Load a checkpoint folder, a hub id or the built-in model.

        Args:
            model: which.
            settings: further fields of engine.runtime.config.EngineConfig (device, dtype, kv_memory, ...).

        Raises:
            CheckpointError: the checkpoint cannot be served.
            InvalidRequest: a setting does not fit the model or the device.
        """
        folder = resolve_model(model)
        self._engine = build_engine(EngineConfig(model=str(folder), **settings))
        self._model = load_served_model(folder, model, self._engine.scheduler.max_model_len)
        self._driver = Driver(self._engine.core)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine."""
        self._model.grammars.close()
        self._engine.close()

    def generate(self, prompt: Prompt, *, n: int = 1, **sampling: Unpack[SamplingOptions]) -> Result:
        """All n answers to a text, token ids or a conversation."""
        return self.generate_batch([prompt], n=n, **sampling)[0]

    def generate_batch(
        self, prompts: Sequence[Prompt], *, n: int = 1, **sampling: Unpack[SamplingOptions]
    ) -> list[Result]:
        """The same for many prompts at once, all with the same sampling. Raises InvalidRequest before any runs."""
        options = dict(sampling)
        logprobs = (
            cast(int | None, options.pop("logprobs", None)),
            cast(int | None, options.pop("prompt_logprobs", None)),
        )
        if "logit_bias" in sampling:
            options["logit_bias"] = {str(token): bias for token, bias in sampling["logit_bias"].items()}
        form = {name: options.pop(name) for name in FormOptions.__annotations__ if name in options}
        if form:
            options["structured_outputs"] = {"json" if name == "json_schema" else name: form[name] for name in form}
        try:
            fields = StructuredFields.model_validate(options | {"n": n})
        except ValidationError as error:
            raise invalid(error) from error
        asked = fields.grammar()
        if asked is not None:
            self._model.grammars.check(asked[0]).result()
        choices = [choice for prompt in prompts for choice in self._choices(prompt, fields, logprobs)]
        answers = [
            _answer(choice, collected) for choice, collected in zip(choices, self._driver.run(choices), strict=True)
        ]
        return [Result(tuple(answers[place : place + n])) for place in range(0, len(answers), n)]

    def tokenize(self, text: str | Sequence[Message]) -> list[int]:
        """Token ids of a text or a rendered conversation, as generate would see them."""
        if isinstance(text, str):
            return list(text_tokens(self._model, text, check=False))
        return list(chat_tokens(self._model, text, check=False))

    def _choices(
        self, prompt: Prompt, fields: StructuredFields, logprobs: tuple[int | None, int | None]
    ) -> list[Choice]:
        asked = fields.grammar()
        chat = False
        if isinstance(prompt, str):
            tokens = text_tokens(self._model, prompt)
        elif chat := is_chat(prompt):
            tokens = chat_tokens(self._model, prompt)
        else:
            tokens = tokens_of_ids(self._model, prompt)
        ask = Ask(
            request_id="llm",
            prompts=[tokens],
            fields=fields,
            default_max_tokens=None if chat else DEFAULT_MAX_TOKENS,
            starts_text=chat,
            num_logprobs=logprobs[0],
            num_prompt_logprobs=logprobs[1],
            grammar=asked[0] if asked else None,
        )
        return choices_of(ask, self._model, DoorConfig())


def _answer(choice: Choice, collected: Collected) -> Answer:
    usage = Usage(len(choice.call.tokens), len(collected.tokens), collected.cached_tokens)
    return Answer(
        text="".join(collected.texts),
        tokens=tuple(collected.tokens),
        finish=collected.finish.value,
        usage=usage,
        stopped_by=collected.stopped_by,
        logprobs=tuple(map(_logprob, collected.logprobs)),
        prompt_logprobs=tuple(map(_logprob, collected.prompt_logprobs)),
    )


def _logprob(row: TokenText) -> Logprob:
    top = tuple(Logprob(token, logprob, piece) for token, logprob, piece in row.top)
    return Logprob(row.token, row.logprob, row.piece, top)
