"""The audit of dependencies: what it says with a database (a real server), without one, and about this project."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from tests.unit.test_size_limits import ROOT


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    module = ModuleType("audit")
    module.__file__ = str(ROOT / "tools" / "audit.py")
    code = compile((ROOT / "tools" / "audit.py").read_text(), module.__file__, "exec")
    exec(code, module.__dict__)
    return module


@pytest.fixture
def database() -> Iterator[str]:
    known = {"old": [{"id": "PYSEC-1", "fixed_in": ["2.0"]}], "fine": []}

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.split("/")[-3]
            self.send_response(200 if name in known else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"vulnerabilities": known.get(name)}).encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/pypi"
        server.shutdown()


def test_a_known_vulnerability_is_named(audit: ModuleType, database: str) -> None:
    with httpx.Client(base_url=database) as client:
        found = list(audit.vulnerabilities(client, {"fine": "1.0", "old": "1.0"}))
        assert found == ["old 1.0: PYSEC-1, fixed in 2.0"]
        with pytest.raises(httpx.HTTPError):
            list(audit.vulnerabilities(client, {"nobody-knows": "1"}))


def test_without_a_database_it_says_so(audit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    nobody = ("--database", "http://127.0.0.1:1")
    audit.main(nobody)
    assert "NOT CHECKED: known vulnerabilities" in capsys.readouterr().out
    assert audit.main((*nobody, "--require-database")) == 1


def test_what_is_not_pinned_is_named(audit: ModuleType) -> None:
    pins = audit.pins_of("a_B==1.0  # why\n\nc==2\n")
    assert pins == {"a-b": "1.0", "c": "2"}
    assert not list(audit.unpinned(pins, iter([("A.b", "1.0+cpu"), ("baton", "9")])))
    assert len(list(audit.unpinned(pins, iter([("c", "3"), ("d", "1")])))) == 2
    with pytest.raises(ValueError, match="does not pin"):
        audit.pins_of("c>=2")


def test_installs_go_by_the_pins(audit: ModuleType, tmp_path: Path) -> None:
    assert not list(audit.free_installs(ROOT))
    (tmp_path / "deploy" / "docker").mkdir(parents=True)
    (tmp_path / "Makefile").write_text("x:\n\tpip install -c constraints.txt a && pip install b\n")
    assert list(audit.free_installs(tmp_path)) == ["Makefile: pip install b"]
