"""The model card: what the model is, where its text comes from, under which licences, how to make it again."""

from typing import Any

CARD = """\
# Baton's built-in model

A Llama-type decoder of {parameters:,} parameters in bfloat16 with a byte-level BPE of {vocab_size} tokens and a context
of {context} tokens. It exists so that a fresh installation answers in words. It knows the documentation of Python's
standard library by heart, more or less, and little else; its answers are often wrong.

## How it was made

    python -m engine.models.train_builtin corpus --out corpus.jsonl.gz
    python -m engine.models.train_builtin train --corpus corpus.jsonl.gz --out model --seconds {seconds:g}

One run on {device}: {steps:,} steps, {tokens:,} tokens in {elapsed:.0f} s. Loss on texts that were held out:
{held_out_loss:.3f}. Of {num_asked:,} questions like those it was trained on, it answers {exact_answers:.0%} word for
word. The loss curve, the recipe and sample answers are in training.json.

## What it was trained on

Documentation strings that were found on one machine with Python {python}: its standard library and language reference
(pydoc topics), packages whose metadata states a permissive licence, and conversations written for it or derived from
those strings. Every paragraph of a package was used once. No text is distributed with the model.

| source | licence | bytes |
|--|--|--|
{sources}

## Licence

The weights may be used under the licence of this project. The texts above belong to their authors and were used under
the licences that the table names; none of them restricts use, all of them ask to keep their notices with copies.
"""


def model_card(report: dict[str, Any], manifest: dict[str, Any]) -> str:
    """README.md of the model's folder, from training.json's and the corpus manifest's values."""
    last = report["curve"][-1]
    rows = (f"| {each['name']} | {each['licence']} | {each['bytes']:,} |" for each in manifest["sources"])
    return CARD.format(
        parameters=report["parameters"],
        vocab_size=report["vocab_size"],
        context=report["recipe"]["context"],
        seconds=report["recipe"]["seconds"],
        device=report["device"],
        steps=last["step"],
        tokens=last["tokens"],
        elapsed=last["seconds"],
        held_out_loss=report["held_out_loss"],
        num_asked=report["num_asked"],
        exact_answers=report["exact_answers"],
        python=manifest["python"],
        sources="\n".join(rows),
    )
