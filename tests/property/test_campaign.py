"""The virtual-time campaign finds nothing wrong, replays exactly, and would find each protection missing."""

import json
from collections.abc import Callable
from random import Random

import pytest
from typer.testing import CliRunner

from baton.cli import app
from baton.virtual import play_chunk
from engine.core.engine import EngineCore
from kv_transfer import session as session_module
from kv_transfer.api import Settled
from kv_transfer.plan import PrefixDigests
from kv_transfer.session import Session, SessionState
from simulator.campaign import run_seed

FAULTS = {"kill", "stop", "lose", "stick", "part", "part all", "drain", "fail reads", "damage", "expire", "abandon"}
REFUSALS = {"peer", "digest", "generation", "transport"}


def test_a_few_seeds_find_nothing_wrong_and_do_what_they_are_for() -> None:
    report, failures = play_chunk(range(25))
    assert not failures
    assert report.requests > 500 and report.reading_handoffs > 200
    assert report.retried and report.resumed and report.preempted and report.refusals


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("block", range(10))
def test_two_thousand_seeds_find_nothing_wrong(block: int) -> None:
    report, failures = play_chunk(range(1000 + 200 * block, 1200 + 200 * block))
    assert not failures
    assert report.moved and FAULTS <= report.faults.keys() and REFUSALS <= report.refusals.keys()


@pytest.mark.parametrize("seed", [12840])
def test_seeds_that_once_found_something(seed: int) -> None:
    """12840: pages were announced of a prompt that had lost its row, and two workers waited for each other."""
    assert not run_seed(seed, Random(seed)).report.wrong


def test_a_seed_replays_exactly() -> None:
    first, again, other = run_seed(3, Random(3)), run_seed(3, Random(3)), run_seed(4, Random(4))
    assert first == again
    assert first.trace != other.trace


def chaos(*options: str) -> dict[str, object]:
    run = CliRunner().invoke(app, ["chaos", "--virtual", "--first-seed", "5", "--seeds", "12", "--json", *options])
    assert run.exit_code == 0
    summary: dict[str, object] = json.loads(run.stdout.splitlines()[-1])
    return summary


def test_the_last_line_is_one_object() -> None:
    summary = chaos("--jobs", "1")
    zero = {"wrong_tokens", "wrong_reads", "hung", "leaked_pages", "leaked_requests", "failed", "broken"}
    assert {name for name in zero if summary[name] == 0} == zero
    assert summary["requests"] and summary["handoffs"] and summary["seconds"]
    assert (summary["first_seed"], summary["seeds"], summary["failing_seeds"]) == (5, 12, [])
    assert {"retried", "resumed", "moved", "reading_handoffs", "refusals", "faults"} <= summary.keys()
    assert {"p50", "p99", "max"} == summary["longest_silence_s"].keys()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_several_processes_find_what_one_finds() -> None:
    alone, shared = chaos("--jobs", "1"), chaos("--jobs", "2")
    for summary in (alone, shared):
        del summary["seconds"], summary["handoffs_per_s"]
    assert alone == shared


def test_virtual_or_real_must_be_said() -> None:
    assert CliRunner().invoke(app, ["chaos"]).exit_code == 1


# ---------------------------------------------------------------- planted bugs


def without_generation_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "_verify", lambda self, generations, now: self._finish(now))


def without_quarantine(patch: pytest.MonkeyPatch) -> None:
    """The pages are given back at once; reads that are on their way end unheard."""

    def stop(self: Session) -> list[session_module.Effect]:
        self.state = SessionState.CANCELLING if self._in_flight else SessionState.FAILED
        return [Settled(self.handoff.id)]

    def drain(self: Session) -> list[session_module.Effect]:
        self.state = SessionState.CANCELLING if self._in_flight else SessionState.FAILED
        return []

    patch.setattr(Session, "_stop", stop)
    patch.setattr(Session, "_drain", drain)


def without_digest(patch: pytest.MonkeyPatch) -> None:
    class EqualToAll(bytes):
        __hash__ = bytes.__hash__

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

    class Anything(PrefixDigests):
        def at(self, end: int) -> bytes:  # type: ignore[override]
            return EqualToAll()

    patch.setattr(session_module, "PrefixDigests", Anything)


def without_release_on_cancel(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EngineCore, "abort", lambda self, id: id in self._states)


MUTANTS = [
    (without_generation_read, "wrong_reads"),
    (without_quarantine, "wrong_reads"),
    (without_digest, "wrong_reads"),
    (without_release_on_cancel, "leaked_pages"),
]


@pytest.mark.parametrize(("plant", "finding"), MUTANTS)
def test_a_missing_protection_is_noticed_within_fifty_seeds(
    plant: Callable[[pytest.MonkeyPatch], None], finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert any(getattr(run_seed(seed, Random(seed)).report, finding) for seed in range(50))
