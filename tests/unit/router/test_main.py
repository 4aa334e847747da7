"""From the router's flags to its settings."""

from pathlib import Path

import pytest

from router import __main__ as main
from tests.fakes.checkpoints import tiny_checkpoint


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("owner/Model-8B", "Model-8B"),
        ("/models/llama/", "llama"),
        ("builtin", "builtin"),
        (".", None),
    ],
)
def test_a_model_is_called_by_the_last_part_of_what_was_given(
    given: str, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id lies in a folder that is named by a hash; workers and `baton serve` do not call it so."""
    snapshot = tiny_checkpoint("llama")

    def resolved(_name: str) -> Path:
        return snapshot

    monkeypatch.setattr(main, "resolve_model", resolved)
    arguments = main.parser().parse_args(["--model", given])
    assert main.config_of(arguments, {"BATON_CLUSTER_KEY": "a key of sixteen bytes"}).model_name == (
        name or snapshot.name
    )
