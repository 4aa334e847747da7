"""The control door: who may, what bodies mean, and how a mistake is told."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.testclient import TestClient

from deploy.fleet.config import FleetConfig
from deploy.fleet.door import create_door
from engine.core.errors import InvalidRequest, NotFound

KEY = b"the cluster key"


@dataclass
class Commands:
    """In the controller's place: what it was asked for."""

    asked: list[Any] = field(default_factory=list)

    def scale(self, counts: dict[str, int]) -> None:
        if "nobody" in counts:
            raise NotFound("no pool 'nobody'")
        self.asked.append(counts)

    def change_role(self, worker: str, role: str) -> None:
        self.asked.append((worker, role))

    def update(self, config: FleetConfig) -> None:
        if config.name == "other":
            raise InvalidRequest("name: the service is 'baton'")
        self.asked.append(config)


def door(commands: Commands, key: bytes = KEY) -> TestClient:
    app = create_door(commands, KEY, commands.asked.append)  # type: ignore[arg-type]
    return TestClient(app, headers={"authorization": f"Bearer {key.decode()}"})


def test_without_the_key_nothing_is_shown_or_done() -> None:
    commands = Commands()
    client = door(commands, b"another key")
    assert client.get("/fleet").status_code == 401
    assert client.post("/fleet/down", json={"drain_s": None}).status_code == 401
    assert not commands.asked


def test_each_command_reaches_the_controller() -> None:
    commands = Commands()
    client = door(commands)
    pools = {"decode": {"replicas": 2}}
    for path, body in (
        ("scale", {"counts": {"decode": 3}}),
        ("role", {"worker": "decode-0", "role": "prefill"}),
        ("update", {"config": {"pools": pools}}),
        ("down", {"drain_s": 5}),
        ("down", {"drain_s": None}),
    ):
        assert client.post(f"/fleet/{path}", json=body).status_code == 202
    scaled, role, config, *drains = commands.asked
    assert (scaled, role, drains) == ({"decode": 3}, ("decode-0", "prefill"), [5, None])
    assert config.pools["decode"].replicas == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("scale", {"counts": {"nobody": 1}}, 404, "no pool 'nobody'"),
        ("scale", {"counts": {"decode": True}}, 400, "the body must be"),
        ("scale", {"counts": {}}, 400, "the body must be"),
        ("scale", [1], 400, "the body is not an object"),
        ("role", {"worker": "decode-0", "role": "router"}, 400, "the body must be"),
        ("update", {"config": {"name": "other", "pools": {"decode": {}}}}, 400, "name: the service is 'baton'"),
        ("update", {"config": {"pool": {}}}, 400, "pool: no such key"),
        ("update", {}, 400, "the file: "),
        ("down", {"drain_s": -1}, 400, "the body must be"),
        ("restart", {}, 404, "no such command"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_done(path: str, body: Any, status: int, words: str) -> None:
    commands = Commands()
    answer = door(commands).post(f"/fleet/{path}", json=body)
    assert answer.status_code == status and answer.text.startswith(words)
    assert not commands.asked


def test_long_and_broken_bodies_are_refused() -> None:
    client = door(Commands())
    assert client.post("/fleet/scale", content=b"{").text == "the body is not JSON"
    assert client.post("/fleet/scale", content=b" " * (300 << 10)).text == "the body is too long"
