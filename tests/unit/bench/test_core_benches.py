"""The two benchmarks of the core run, and what they print can be read by a program."""

import json

import pytest

from bench import planning, prefix_tree


def test_prefix_tree_prints_its_costs_at_each_page_size(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--json", "--tokens", "512", "--run-tokens", "128", "--repetitions", "20", "--page-size", "16", "64"]
    assert prefix_tree.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["page_size"] for row in report["pages"]] == [16, 64]
    assert report["lookup_us"] == report["pages"][1]["lookup_us"] > 0
    assert all(row["insert_us_per_page"] > 0 and row["evict_us_per_page"] > 0 for row in report["pages"])


def test_planning_prints_its_costs_for_each_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert planning.main(["--json", "--rows", "1", "8", "--steps", "70", "--prompt-tokens", "256"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["rows"] for row in report["decode"]] == [1, 8]
    assert all(row["plan_us"] > 0 and row["commit_us"] > 0 for row in report["decode"])
    assert report["admission"]["tokens"] == 256
