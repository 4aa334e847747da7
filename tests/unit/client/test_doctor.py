"""The doctor's findings, from statuses as the router says them."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from baton.diagnosis import examine
from baton.doctor import show
from baton.status import show_pages
from engine.core.messages import PeerStatus
from engine.core.types import KVLayout, PageCount, WorkerInfo, WorkerLoad
from router.api import ServiceStatus, WorkerStatus
from router.http.status import status_body

LAYOUT = KVLayout("0123456789abcdef", 2, 2, 16, 16, "float32")
LOAD = WorkerLoad(1, 0.0, 0, 0, 0, 90, 100, 0.0125, 1000.0, (PageCount("free", 90), PageCount("leased", 10, 3.25)))


def worker(name: str, *peers: PeerStatus, state: str = "ready", load: WorkerLoad = LOAD) -> WorkerStatus:
    role = name.partition("-")[0]
    info = WorkerInfo(name, 7, (role,), f"{name}:1", "tiny", LAYOUT, 100, 512, (("nixl", b""),), version="1.0")
    return WorkerStatus(info, state, "" if state == "ready" else "gone", load, 0.1, peers)


def proven(name: str, **changes: Any) -> PeerStatus:
    return replace(PeerStatus(name, 7, True, "nixl", 3.2e9), **changes)


def healthy() -> list[WorkerStatus]:
    return [
        worker("prefill-0"),
        worker("decode-0", proven("prefill-0"), proven("decode-1")),
        worker("decode-1", proven("prefill-0", transport="grpc", message="nixl: no such device"), proven("decode-0")),
    ]


def body(workers: list[WorkerStatus], ready: bool = True) -> dict[str, Any]:
    return status_body(ServiceStatus(ready, "" if ready else "no worker is ready", tuple(workers)))


def test_a_healthy_service() -> None:
    report = examine(body(healthy()))
    assert report.ok, report
    assert {(pair.source, pair.target) for pair in report.pairs} == {
        ("prefill-0", "decode-0"),
        ("prefill-0", "decode-1"),
        ("decode-0", "decode-1"),
        ("decode-1", "decode-0"),
    }
    out = io.StringIO()
    show(report, Console(file=out, width=160))
    for words in ("3.20 GB/s", "grpc", "not over nixl: no such device", "baton 1.0", "all accounted for"):
        assert words in out.getvalue()


@pytest.mark.parametrize(
    ("index", "changed", "words"),
    [
        (1, worker("decode-0", proven("decode-1"), proven("prefill-0", ready=False, message="no way")), "no way"),
        (1, worker("decode-0", proven("decode-1")), "has not said anything"),
        (1, worker("decode-0", proven("decode-1"), proven("prefill-0", incarnation=6)), "still speaks of prefill-0"),
        (0, worker("prefill-0", state="lost"), "prefill-0 is lost: gone"),
        (0, replace(worker("prefill-0"), load_age_s=2.0), "nothing for 2.0 s"),
        (0, worker("prefill-0", load=replace(LOAD, pages_by_state=(PageCount("free", 99),))), "99 of 100 pages"),
        (0, worker("prefill-0", load=replace(LOAD, num_page_faults=2)), "wrong 2 times"),
        (
            0,
            worker("prefill-0", load=replace(LOAD, pages_by_state=(PageCount("quarantined", 100, 75.0),))),
            "quarantined for 75 s",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_words(index: int, changed: WorkerStatus, words: str) -> None:
    workers = healthy()
    workers[index] = changed
    report = examine(body(workers))
    assert not report.ok
    findings = [entry.text for entry in (*report.checks, *report.pairs) if not entry.ok]
    assert any(words in text for text in findings), findings


def test_no_workers_and_two_of_one() -> None:
    assert not examine(body([], ready=False)).ok
    twice = [*healthy(), worker("prefill-0")]
    twice[-1] = replace(twice[-1], info=replace(twice[-1].info, incarnation=8))
    assert any("there 2 times" in check.text for check in examine(body(twice)).checks)


def test_the_page_table_adds_up_and_shows_ages() -> None:
    out = io.StringIO()
    show_pages(body([*healthy(), replace(worker("decode-9"), load=None)]), Console(file=out, width=120))
    assert "10 (3.2 s)" in out.getvalue() or "10 (3.3 s)" in out.getvalue()
    row = next(line for line in out.getvalue().splitlines() if "decode-0" in line)
    assert row.split()[-2:] == ["100", "100"]
