"""Rules and dashboards are what their sources say; promtool reads the rules, and each alert fires when it should, and
only then."""

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from deploy.grafana.board import to_json
from deploy.grafana.boards import BOARDS
from deploy.grafana.build import DEPLOY, files, main, stale
from deploy.prometheus.rules import Objectives, alerts, groups
from tests.fakes.prometheus import program

RULES = DEPLOY / "prometheus" / "rules.yaml"
RUNBOOK = DEPLOY.parent / "docs" / "operations.md"
ROUTER, WORKER = 'job="baton-router",router="r"', 'job="baton-worker",worker="w"'
GOOD, BAD = f'baton_router_requests_total{{{ROUTER},outcome="finished"}}', "unavailable"


@dataclass(frozen=True)
class Case:
    """One alert and series under which it fires, or does not."""

    alert: str
    fires: bool
    series: dict[str, str]
    """Series -> promtool's notation of its values, one each `step`."""
    at: str = "30m"
    step: str = "15s"
    name: str = field(default="")


def outcomes(good: str, bad: str, code: str = BAD) -> dict[str, str]:
    return {GOOD: good, f'baton_router_requests_total{{{ROUTER},outcome="{code}"}}': bad}


def firsts(soon: str, every: str) -> dict[str, str]:
    return {
        f'baton_router_ttft_seconds_bucket{{{ROUTER},le="0.5"}}': soon,
        f"baton_router_ttft_seconds_count{{{ROUTER}}}": every,
    }


def one(series: str, labels: str, values: str) -> dict[str, str]:
    return {f"{series}{{{labels}}}": values}


UP_ROUTER = one("up", ROUTER, "1x200")
HOUR = "1+0x200"
CASES = (
    # 2 % of all requests fail: 20 times the budget of 0.1 %.
    Case("BatonErrorsBurnFast", True, outcomes("0+98x150", "0+2x150"), at="2h", step="1m"),
    Case("BatonErrorsBurnFast", False, outcomes("0+9999x150", "0+1x150"), at="2h", step="1m", name="within the budget"),
    Case(
        "BatonErrorsBurnFast",
        False,
        outcomes("0+98x150", "0+2x150", "invalid_argument"),
        at="2h",
        step="1m",
        name="theirs",
    ),
    Case("BatonErrorsBurnFast", False, outcomes("0+98x150", "0+2x60 120+0x90"), at="2h", step="1m", name="over by now"),
    Case("BatonErrorsBurnFast", False, {GOOD: "0+98x150"}, at="2h", step="1m", name="nothing ever failed"),
    # 0.3 %: three times the budget for days; no reason to wake anybody.
    Case("BatonErrorsBurnSlow", True, outcomes("0+9970x170", "0+30x170"), at="80h", step="30m"),
    Case("BatonErrorsBurnFast", False, outcomes("0+9970x170", "0+30x170"), at="80h", step="30m", name="slow"),
    Case("BatonErrorsBurnSlow", False, outcomes("0+99960x170", "0+40x170"), at="80h", step="30m"),
    Case("BatonTtftBurnFast", True, firsts("0+70x150", "0+100x150"), at="2h", step="1m"),
    Case("BatonTtftBurnFast", False, firsts("0+95x150", "0+100x150"), at="2h", step="1m"),
    Case("BatonTtftBurnSlow", True, firsts("0+98x170", "0+100x170"), at="80h", step="30m"),
    Case("BatonTtftBurnSlow", False, firsts("0+995x170", "0+1000x170"), at="80h", step="30m"),
    Case("BatonRouterDown", True, one("up", ROUTER, "1x60 0x60")),
    Case("BatonRouterDown", False, one("up", ROUTER, "1x110 0x2 1x10"), at="28m15s", name="for a moment"),
    Case("BatonWorkerDown", True, one("up", WORKER, "1x60 0x60")),
    Case("BatonWorkerDown", False, one("up", WORKER, "1x120")),
    Case("BatonNoWorkerReady", True, UP_ROUTER | one("baton_router_worker_ready", f'{ROUTER},worker="w"', "0x120")),
    Case("BatonNoWorkerReady", True, UP_ROUTER, name="knows none"),
    Case(
        "BatonNoWorkerReady",
        False,
        UP_ROUTER
        | one("baton_router_worker_ready", f'{ROUTER},worker="v"', "0x120")
        | one("baton_router_worker_ready", f'{ROUTER},worker="w"', "1x120"),
    ),
    Case("BatonBreakerOpen", True, one("baton_router_worker_breaker_open", f'{ROUTER},worker="w"', "1x120")),
    Case(
        "BatonBreakerOpen",
        True,
        one("baton_router_pair_breaker_open", f'{ROUTER},source="p",target="d"', "1x120"),
        name="of a pair",
    ),
    Case("BatonBreakerOpen", False, one("baton_router_worker_breaker_open", f'{ROUTER},worker="w"', "0x116 1x2 0x9")),
    Case("BatonIndexStale", True, one("baton_router_worker_index_synced", f'{ROUTER},worker="w"', "0x120")),
    Case("BatonIndexStale", False, one("baton_router_worker_index_synced", f'{ROUTER},worker="w"', "0x3 1x120")),
    Case("BatonQueueGrows", True, one("baton_router_queued_requests", ROUTER, "0+5x120")),
    Case("BatonQueueGrows", False, one("baton_router_queued_requests", ROUTER, "600-5x120"), name="shrinks"),
    Case("BatonQueueGrows", False, one("baton_router_queued_requests", ROUTER, "0x120"), name="empty"),
    Case("BatonDrainStuck", True, one("baton_worker_draining", WORKER, "0x20 1x100")),
    Case("BatonDrainStuck", False, one("baton_worker_draining", WORKER, "0x90 1x30")),
    Case("BatonPagesLeaked", True, one("baton_page_conservation_failures_total", WORKER, "0x100 1x20")),
    Case("BatonPagesLeaked", False, one("baton_page_conservation_failures_total", WORKER, "3x120")),
    Case(
        "BatonPagesQuarantinedLong",
        True,
        one("baton_worker_page_oldest_seconds", f'{WORKER},state="quarantined"', "0+15x120"),
    ),
    Case(
        "BatonPagesQuarantinedLong",
        False,
        one("baton_worker_page_oldest_seconds", f'{WORKER},state="quarantined"', "2x120")
        | one("baton_worker_page_oldest_seconds", f'{WORKER},state="leased"', "0+15x120"),
    ),
    Case("BatonPairNotProven", True, one("baton_worker_peer_ready", f'{WORKER},peer="p"', "1x60 0x60")),
    Case("BatonPairNotProven", False, one("baton_worker_peer_ready", f'{WORKER},peer="p"', "0x5 1x115")),
    Case(
        "BatonTransferBelowFloor",
        True,
        one("baton_worker_peer_bytes_per_second", f'{WORKER},peer="p"', "9e8x120")
        | one("baton_worker_peer_ready", f'{WORKER},peer="p"', "1x120"),
    ),
    Case(
        "BatonTransferBelowFloor",
        False,
        one("baton_worker_peer_bytes_per_second", f'{WORKER},peer="p"', "1.09e11x120")
        | one("baton_worker_peer_ready", f'{WORKER},peer="p"', "1x120"),
    ),
    Case(
        "BatonTransferBelowFloor",
        False,
        one("baton_worker_peer_bytes_per_second", f'{WORKER},peer="p"', "0x120")
        | one("baton_worker_peer_ready", f'{WORKER},peer="p"', "0x120"),
        name="lost is another alert",
    ),
    Case(
        "BatonHandoffsFail",
        True,
        one("baton_router_handoffs_total", ROUTER, "0+10x120")
        | one("baton_router_handoff_failures_total", ROUTER, "0+1x120"),
    ),
    Case(
        "BatonHandoffsFail",
        False,
        one("baton_router_handoffs_total", ROUTER, "0+100x120")
        | one("baton_router_handoff_failures_total", ROUTER, "0+1x120"),
    ),
    Case("BatonPreemption", True, one("baton_worker_preempted_total", WORKER, "0+5x120")),
    Case("BatonPreemption", False, one("baton_worker_preempted_total", WORKER, "0+1x120")),
)


def test_files_are_what_their_sources_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_what_is_out_of_date_is_found(tmp_path: Path) -> None:
    for path, text in files(tmp_path).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert stale(tmp_path) == []
    (tmp_path / "grafana" / "dashboards" / "old.json").write_text("{}")
    (tmp_path / "prometheus" / "rules.yaml").write_text("")
    assert [path.name for path in stale(tmp_path)] == ["old.json", "rules.yaml"]


def test_every_alert_has_cases_of_both_kinds_and_a_runbook_entry() -> None:
    names = {alert.name for alert in alerts()}
    assert {(case.alert, case.fires) for case in CASES} == {(name, fires) for name in names for fires in (True, False)}
    headings = set(re.findall(r"^### (Baton\w+)$", RUNBOOK.read_text(), re.MULTILINE))
    assert headings == names
    for group in groups():
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["annotations"]["runbook_url"].endswith("#" + rule["alert"].lower())


def test_promtool_reads_rules_and_configuration() -> None:
    for words in (("rules", str(RULES)), ("config", str(DEPLOY / "prometheus" / "prometheus.yaml"))):
        checked = subprocess.run([program("promtool"), "check", *words], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def run_promtool(folder: Path, tests: list[dict[str, object]], evaluate: str) -> None:
    path = folder / "alerts.yaml"
    # Left alone, groups are evaluated in any order, and what reads another group's records is a step late now and then.
    order = [group["name"] for group in yaml.safe_load(RULES.read_text())["groups"]]
    file = {"rule_files": [str(RULES)], "evaluation_interval": evaluate, "group_eval_order": order, "tests": tests}
    path.write_text(yaml.safe_dump(file))
    ran = subprocess.run([program("promtool"), "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


STEPS = sorted({case.step for case in CASES} - {"15s"})


@pytest.mark.parametrize("step", [*STEPS, pytest.param("15s", marks=pytest.mark.slow)])
def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path, step: str) -> None:
    """One run of promtool for all cases whose series have a value each `step`, which rules are evaluated in, too."""
    tests = [
        {
            "name": f"{case.alert} {'fires' if case.fires else 'is silent'} {case.name}",
            "interval": step,
            "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) > bool 0 or vector(0)',
                    "eval_time": case.at,
                    "exp_samples": [{"labels": "{}", "value": int(case.fires)}],
                }
            ],
        }
        for case in CASES
        if case.step == step
    ]
    run_promtool(tmp_path, tests, step)


def test_an_alert_says_where_and_how_much(tmp_path: Path) -> None:
    series = one("baton_worker_peer_bytes_per_second", f'{WORKER},peer="p"', "9e8x120")
    series |= one("baton_worker_peer_ready", f'{WORKER},peer="p"', "1x120")
    expected = {
        "exp_labels": {"severity": "ticket", "job": "baton-worker", "worker": "w", "peer": "p"},
        "exp_annotations": {
            "summary": "w pulls from p at 900MB/s only",
            "runbook_url": "docs/operations.md#batontransferbelowfloor",
        },
    }
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": "10m", "alertname": "BatonTransferBelowFloor", "exp_alerts": [expected]},
        ],
    }
    run_promtool(tmp_path, [test], "15s")


def test_objectives_move_the_rules() -> None:
    strict = json.dumps(groups(Objectives(in_time=0.999, ttft_s=0.25)))
    assert 'le=\\"0.25\\"' in strict and "0.0144" in strict and 'le=\\"0.5\\"' not in strict


def test_dashboards_are_whole() -> None:
    assert [board.uid for board in BOARDS] == [
        f"baton-{n}" for n in ("overview", "ttft", "router", "handoff", "worker")
    ]
    for board in BOARDS:
        made = to_json(board)
        panels = [panel for panel in made["panels"] if panel["type"] != "row"]
        assert len(panels) == len(board.panels) == len({panel["title"] for panel in panels})
        assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
        cells = [
            (x, y)
            for panel in made["panels"]
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
        for panel in panels:
            for target in panel["targets"]:
                used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
                assert used <= {name for name, _ in board.variables}, target["expr"]
