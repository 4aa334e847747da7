"""The campaign's own judgement: what it calls wrong, and what its report says."""

import asyncio
import json
import time

import pytest

from deploy.chaos.cases import Case, Seen, difference, make_cases, make_kinds
from deploy.chaos.faults import PATIENCE_S, over
from deploy.chaos.link import Link
from deploy.chaos.load import Outcome
from deploy.chaos.report import COUNTS, Report, added_latency
from deploy.chaos.status import Fault, whole
from engine.core.errors import BatonError

RIGHT = Seen("abc", [1, 2, 3], [-0.1, -0.2, -0.3], "length")
CASE = Case("one", (1, 2), {"temperature": 0.0, "max_tokens": 3, "ignore_eos": True})


def outcome(result: str, seconds: float = 1.0, **more: object) -> Outcome:
    return Outcome(CASE, "grpc", 10.0, ended_s=10.0 + seconds, result=result, **more)  # type: ignore[arg-type]


def test_the_right_answer_is_right_and_so_is_its_beginning() -> None:
    assert difference([RIGHT], [RIGHT], whole=True) == ""
    assert difference([Seen("a", [1])], [RIGHT], whole=False) == ""
    assert difference([Seen()], [RIGHT], whole=False) == ""
    near = Seen("abc", [1, 2, 3], [-0.1001, -0.2, -0.3], "length")
    assert difference([near], [RIGHT], whole=True) == ""


@pytest.mark.parametrize(
    ("seen", "is_whole"),
    [
        (Seen("abc", [1, 2, 4], [-0.1, -0.2, -0.3], "length"), True),
        (Seen("abd", [1, 2, 3], [-0.1, -0.2, -0.3], "length"), True),
        (Seen("abc", [1, 2, 3], [-0.1, -0.2, -0.3], None), True),
        (Seen("abc", [1, 2, 3], [-0.1, -0.2, -0.3], "stop"), True),
        (Seen("abc", [1, 2, 3], [-0.1, -0.2], "length"), True),
        (Seen("abc", [1, 2, 3], [-0.1, -0.2, -0.4], "length"), True),
        (Seen("ab", [1, 2], [-0.1, -0.2], "length"), True),
        (Seen("", [2]), False),
        (Seen("b", []), False),
        (Seen("abca", [1, 2, 3, 1]), False),
    ],
)
def test_anything_else_is_wrong(seen: Seen, is_whole: bool) -> None:
    assert difference([seen], [RIGHT], whole=is_whole)


def test_a_report_is_one_object_and_anything_bad_fails_it() -> None:
    report = Report()
    report.add_faults(
        [Fault("kill", "decode-0", "decode", 5.0, {"decode": 2}, felt_s=0.5, noticed_s=0.6, healed_s=3.0)], 4.0
    )
    report.count([outcome("right"), outcome("left"), outcome("refused")])
    assert report.detection_s == {"p50": 0.1, "max": 0.1}, "from the first read that met it"
    assert report.ok
    other = Report()
    other.count([outcome("right")])
    other.retries["handoff"] += 1
    report.add(other)
    values = json.loads(json.dumps(report.as_json()))
    assert values.keys() >= COUNTS.keys()
    assert (values["requests"], values["left"], values["refused"], values["restarts"]) == (4, 1, 1, 1)
    assert values["retries"] == {"handoff": 1} and values["ok"] is True
    assert values["faults"][0]["struck_s"] == 1.0
    for result in ("wrong", "failed", "hung"):
        bad = Report(faults=report.faults)
        bad.count([outcome(result)])
        assert not bad.ok and bad.errors
    assert not Report().ok, "nothing was tried"


def test_added_latency_compares_with_the_same_request_in_peace() -> None:
    calm = [outcome("right", seconds) for seconds in (1.0, 2.0, 3.0)]
    struck = outcome("right", 5.0, fault=0, shaken=True, longest_wait_s=2.5)
    found = added_latency([*calm, struck])
    assert (found["requests"], found["added_p50_s"], found["longest_wait_p99_s"]) == (1, 3.0, 2.5)
    assert added_latency(calm) == {}


@pytest.mark.parametrize("num_hits", [0, 1])
async def test_faults_go_on_until_one_has_struck_but_not_for_ever(num_hits: int) -> None:
    async def hits() -> int:
        return num_hits

    now = time.monotonic()
    assert not await over(now + 1000, hits, "struck")
    assert await over(now - 1, hits, "struck") is (num_hits > 0)
    if not num_hits:
        with pytest.raises(BatonError, match="no fault struck"):
            await over(now - PATIENCE_S, hits, "struck")


def test_what_is_hard_to_go_on_with_is_asked_with_long_answers() -> None:
    kinds = {case.name: case for case in make_kinds(4096)}
    assert {name for name, case in kinds.items() if case.is_plain_greedy} == set()
    assert kinds["penalties"].options["temperature"] == 0.0 and kinds["two answers"].n == 2
    assert all(case.options["max_tokens"] >= 100 for case in kinds.values())


def test_cases_are_the_same_for_a_seed_and_cover_the_edges() -> None:
    cases = make_cases(4096, 3)
    assert cases == make_cases(4096, 3) and cases != make_cases(4096, 4)
    assert len({case.name for case in cases}) == len(cases)
    assert {1, 15, 16, 17, 63, 64, 65} <= {len(case.prompt) for case in cases}
    assert any(case.n > 1 for case in cases) and any("stop" in case.options for case in cases)


def test_a_service_is_whole_when_all_are_ready_and_every_pair_is_proven() -> None:
    def worker(id: str, state: str = "ready", *peers: str) -> dict[str, object]:
        proven = [{"id": peer, "incarnation": "1", "ready": True} for peer in peers]
        return {"id": id, "incarnation": "1", "state": state, "load": {}, "peers": proven}

    assert whole({"workers": [worker("prefill-0"), worker("decode-0", "ready", "prefill-0")]}) == {
        "prefill-0",
        "decode-0",
    }
    assert not whole({"workers": [worker("prefill-0"), worker("decode-0")]})
    assert not whole({"workers": [worker("prefill-0"), worker("decode-0", "hung", "prefill-0")]})


async def test_a_stalled_link_keeps_its_bytes_until_it_goes_on() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Link("127.0.0.2", "127.0.0.1", [port]) as link:
        reader, writer = await asyncio.open_connection("127.0.0.2", port)
        writer.write(b"one")
        assert await asyncio.wait_for(reader.readexactly(3), 10) == b"one"
        link.stall()
        writer.write(b"two")
        answer = asyncio.ensure_future(reader.readexactly(3))
        await asyncio.wait_for(link.felt(), 10)
        assert not answer.done()
        link.resume()
        assert await asyncio.wait_for(answer, 10) == b"two"
        writer.close()
    server.close()
