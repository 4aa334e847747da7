"""The commands: what they print, and one line and an exit code for each failure."""

import io
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from rich.console import Console

from baton.admin_door import routers_of
from baton.cli import main
from baton.status import router_lines, show, show_prefixes
from deploy.door import AdminDoor, publish, withdraw
from engine.core.types import KVLayout, WorkerInfo, WorkerLoad
from router.api import ServiceStatus, WorkerStatus
from router.http.status import status_body
from router.tenants_file import read_tenants
from tests.unit.client.conftest import Service


def run(monkeypatch: pytest.MonkeyPatch, *args: str, stdin: str = "") -> int:
    """The command's exit code."""
    monkeypatch.setattr(sys, "argv", ["baton", *args])
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    with pytest.raises(SystemExit) as exited:
        main()
    return int(exited.value.code or 0)


def test_generate(service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    service.answers("one two. three")
    args = ("generate", "count", "--target", service.target, "--max-tokens", "40", "--seed", "3", "--stop", ". ")
    assert run(monkeypatch, *args) == 0
    assert capsys.readouterr().out == "one two\n"
    (call,) = service.generator.calls
    assert (call.sampling.max_tokens, call.sampling.seed) == (40, 3)


def test_generate_from_standard_input(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "generate", "-", "--target", service.target, "--max-tokens", "2", stdin="from a pipe") == 0
    assert service.model.tokenizer.decode(service.generator.calls[0].tokens) == "from a pipe"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["generate", "hi", "--temperature", "-1"], 2, "baton: temperature: "),
        (["generate", "hi", "--max-tokens", "-1"], 2, "baton: max_tokens: "),
        (["generate", "hi", "--seed", "9" * 30], 2, "baton: seed: "),
        (["generate", "\udcff"], 2, "baton: prompt: "),
        (["generate", "", "--max-tokens", "600"], 2, "baton: 1 prompt tokens and max_tokens 600 are more"),
    ],
)
def test_mistakes_are_one_line(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    code: int,
    message: str,
) -> None:
    assert run(monkeypatch, *args, "--target", service.target) == code
    err = capsys.readouterr().err
    assert err.startswith(message) and err.count("\n") == 1


@pytest.mark.parametrize("args", [["generate", "hi", "--target"], ["chat", "--target"], ["status", "--url"]])
def test_nobody_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    address = "http://127.0.0.1:1" if args[0] == "status" else "127.0.0.1:1"
    assert run(monkeypatch, *args, address) == 1
    out, err = capsys.readouterr()
    assert err.startswith("baton: cannot re") and err.count("\n") == 1 and out == ""


def test_a_page_that_is_no_status(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "status", "--url", f"{service.url}/v1") == 1
    err = capsys.readouterr().err
    assert "404" in err and err.count("\n") == 1


@pytest.mark.parametrize("url", ["http://localhost:1", "http://localhost:port", "http://localhost:999999", "nonsense"])
def test_nothing_to_drain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert run(monkeypatch, "drain", "decode-0", "--url", url) == 2
    out, err = capsys.readouterr()
    assert err.startswith("baton: ") and err.count("\n") == 1 and out == ""


def test_chat_keeps_the_conversation(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers("hello")
    lines = "first\nsecond\n\n/new\nthird\n/exit\nnever\n"
    args = ("chat", "--target", service.target, "--system", "be brief", "--max-tokens", "9")
    assert run(monkeypatch, *args, stdin=lines) == 0
    assert capsys.readouterr().out.count("hello\n") == 3
    decode = service.model.tokenizer.pieces
    prompts = [b"".join(map(decode.spelled, call.tokens)).decode() for call in service.generator.calls]
    system = "<|begin|><|role|>system\nbe brief<|end|>"
    first = "<|role|>user\nfirst<|end|>"
    assert prompts[0] == system + first + "<|role|>assistant\n"
    assert (
        prompts[1] == system + first + "<|role|>assistant\nhello<|end|><|role|>user\nsecond<|end|><|role|>assistant\n"
    )
    assert prompts[2] == system + "<|role|>user\nthird<|end|><|role|>assistant\n"


def test_chat_goes_on_after_a_turn_that_failed(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers("hello")
    assert run(monkeypatch, "chat", "--target", service.target, stdin="x" * 3000 + "\nhi\n") == 0
    out, err = capsys.readouterr()
    assert "hello" in out and "baton: messages: " in err


def busy_service() -> ServiceStatus:
    layout = KVLayout("hash", 2, 2, 16, 16, "float32")
    info = WorkerInfo("prefill-0", 7, ("prefill",), "127.0.0.1:5", "tiny", layout, 100, 512)
    load = WorkerLoad(1, 0.0, 2, 300, 4, 60, 100, 0.0125, 1000.0)
    bad = WorkerStatus(info, "refused", "page sizes differ")
    return ServiceStatus(False, "no decode worker", (WorkerStatus(info, "ready", load=load), bad), 5, 6)


def test_status_table() -> None:
    out = io.StringIO()
    show(status_body(busy_service()), Console(file=out, width=140))
    text = out.getvalue()
    assert "not ready: no decode worker; 6 requests run, 5 wait" in text
    for word in ("prefill-0", "60/100", "12.5", "refused: page sizes differ"):
        assert word in text


def test_status_fits_a_narrow_terminal() -> None:
    out = io.StringIO()
    show(status_body(busy_service()), Console(file=out, width=80))
    assert "prefill-0" in out.getvalue() and "127.0.0.1:5" in out.getvalue()


def test_status_exit_code(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "status", "--url", service.url) == 0
    service.status.now = busy_service()
    capsys.readouterr()
    assert run(monkeypatch, "status", "--json", "--url", service.url) == 1
    assert json.loads(capsys.readouterr().out)["workers"][0]["id"] == "prefill-0"


def test_a_new_key_is_printed_with_the_lines_for_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    for _ in range(2):
        assert run(monkeypatch, "keys", "new", "acme", "--operator") == 0
        key, _, lines = capsys.readouterr().out.partition("\nfor the tenants' file:\n")
        key = key.rpartition(" ")[2]
        (tmp_path / "tenants.toml").write_text(lines)
        caller = read_tenants(tmp_path / "tenants.toml").caller(f"Bearer {key}")
        assert (caller.tenant.name, caller.operator) == ("acme", True)
        assert key.rpartition("_")[2] not in lines
        made.append(key)
    assert made[0] != made[1]


def test_commands_send_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_API_KEY", "some key")
    sent = []

    def get(url: str, headers: dict[str, str], timeout: float, verify: bool) -> httpx.Response:
        assert verify is True
        sent.append(headers)
        return httpx.Response(403, request=httpx.Request("GET", url))

    monkeypatch.setattr(httpx, "get", get)
    assert run(monkeypatch, "status") == 2
    assert sent == [{"authorization": "Bearer some key"}]


def test_the_prefixes_of_a_service() -> None:
    body = {
        "pages": 5,
        "workers": [
            {"id": "w2", "source": "session", "synced": False, "tokens": {"device": 0}, "agrees": None},
            {"id": "w1", "source": "public", "synced": True, "tokens": {"device": 64, "host": 16}, "agrees": True},
        ],
        "prefixes": [
            {"begins": "You are [b]helpful", "tokens": 48, "uses": 7, "holders": {"w1": 48, "w2": 16}},
            {"begins": "x", "tokens": 16, "uses": 1, "holders": {}},
        ],
    }
    out = io.StringIO()
    show_prefixes(body, Console(file=out, width=80))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["w1", "public", "exact", "64", "16"] in lines and ["w2", "session", "not", "synced", "0", "0"] in lines
    assert ["48", "7", "w1", "(48),", "w2", "(16)", "'You", "are", "[b]helpful'"] in lines
    assert ["16", "1", "nobody", "'x'"] in lines


def test_status_names_all_routers_of_a_service(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(router_lines((service.url,))) == [], "one router needs no line"
    port = urlsplit(service.url).port
    assert port is not None
    publish(port, AdminDoor("http://127.0.0.1:1", "key", routers=(service.url, "http://127.0.0.1:1")))
    try:
        assert run(monkeypatch, "status", "--url", service.url) == 0
        assert routers_of(f"http://elsewhere:{port}") == ()
    finally:
        withdraw(port)
    out = capsys.readouterr().out
    assert f"router {service.url}: ready; " in out and "router http://127.0.0.1:1: cannot read the status" in out


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("baton ")
