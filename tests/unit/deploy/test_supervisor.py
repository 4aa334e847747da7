"""What the supervisor does when processes start, fail to start, and die. No process is real here."""

import asyncio

import pytest

from deploy.supervisor import End, Member, Process, RestartConfig, Supervisor
from engine.core.errors import CheckpointError, Unavailable

FAST = RestartConfig(first_s=0.0, max_s=0.0)


class FakeProcess:
    def __init__(self, address: str, error: Exception | None = None) -> None:
        self.address = address
        self.error = error
        self.started = asyncio.Event()
        self.stopped = asyncio.Event()
        self.death: asyncio.Future[End] = asyncio.get_running_loop().create_future()

    async def start(self) -> str:
        self.started.set()
        if self.error is not None:
            raise self.error
        return self.address

    async def ended(self) -> End:
        return await asyncio.shield(self.death)

    async def stop(self) -> None:
        self.stopped.set()


class Launcher:
    """Hands out prepared processes and remembers ups and downs."""

    def __init__(self, name: str, *processes: FakeProcess) -> None:
        self.processes = list(processes)
        self.log: list[str] = []
        self.changed = asyncio.Event()
        self.member = Member(name, self.launch, self._on_up, self._on_down)

    def launch(self) -> Process[str]:
        return self.processes.pop(0)

    async def _on_up(self, address: str) -> None:
        self._note(f"up {address}")

    async def _on_down(self, address: str) -> None:
        self._note(f"down {address}")

    def _note(self, entry: str) -> None:
        self.log.append(entry)
        self.changed.set()

    async def wait_for(self, entry: str) -> None:
        async with asyncio.timeout(5):
            while entry not in self.log:
                self.changed.clear()
                await self.changed.wait()


async def test_all_start_side_by_side_and_stop() -> None:
    first, second = FakeProcess("a:1"), FakeProcess("b:1")
    launchers = [Launcher("a", first), Launcher("b", second)]
    supervisor = Supervisor(lambda _line: None, FAST)
    await supervisor.start([launcher.member for launcher in launchers])
    assert [launcher.log for launcher in launchers] == [["up a:1"], ["up b:1"]]
    await supervisor.stop()
    await supervisor.stop()
    assert first.stopped.is_set()
    assert second.stopped.is_set()


async def test_one_that_cannot_start_takes_all_down_with_its_reason() -> None:
    good, bad = FakeProcess("a:1"), FakeProcess("b:1", CheckpointError("weights.safetensors is truncated"))
    supervisor = Supervisor(lambda _line: None, FAST)
    with pytest.raises(CheckpointError, match="truncated"):
        await supervisor.start([Launcher("a", good).member, Launcher("b", bad).member])
    assert good.stopped.is_set()
    assert bad.stopped.is_set()


async def test_a_dead_process_is_replaced_and_both_moves_are_told() -> None:
    old, new = FakeProcess("a:1"), FakeProcess("a:2")
    launcher = Launcher("a", old, new)
    lines: list[str] = []
    supervisor = Supervisor(lines.append, FAST)
    await supervisor.start([launcher.member])
    watching = asyncio.ensure_future(supervisor.watch())
    old.death.set_result(End("killed by signal 9"))
    await launcher.wait_for("up a:2")
    assert launcher.log == ["up a:1", "down a:1", "up a:2"]
    assert any("killed by signal 9" in line for line in lines)
    assert old.stopped.is_set()
    watching.cancel()
    await supervisor.stop()
    assert new.stopped.is_set()


async def test_restart_is_tried_until_it_works() -> None:
    old, new = FakeProcess("a:1"), FakeProcess("a:3")
    refused = [FakeProcess("a:2", Unavailable("no room")) for _ in range(3)]
    launcher = Launcher("a", old, *refused, new)
    supervisor = Supervisor(lambda _line: None, FAST)
    await supervisor.start([launcher.member])
    watching = asyncio.ensure_future(supervisor.watch())
    old.death.set_result(End("died"))
    await launcher.wait_for("up a:3")
    assert all(process.stopped.is_set() for process in refused)
    watching.cancel()
    await supervisor.stop()


async def test_stop_while_a_restart_waits_leaves_nothing() -> None:
    old = FakeProcess("a:1")
    launcher = Launcher("a", old)
    supervisor = Supervisor(lambda _line: None, RestartConfig(first_s=3600))
    await supervisor.start([launcher.member])
    watching = asyncio.ensure_future(supervisor.watch())
    old.death.set_result(End("died"))
    await launcher.wait_for("down a:1")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await supervisor.stop()
    assert launcher.processes == []
    assert old.stopped.is_set()


async def test_one_that_was_asked_to_leave_is_not_replaced() -> None:
    leaving, staying, spare = FakeProcess("a:1"), FakeProcess("b:1"), FakeProcess("b:2")
    gone, kept = Launcher("a", leaving), Launcher("b", staying, spare)
    supervisor = Supervisor(lambda _line: None, FAST)
    await supervisor.start([gone.member, kept.member])
    watching = asyncio.ensure_future(supervisor.watch())
    leaving.death.set_result(End("it was drained", wanted=True))
    await gone.wait_for("down a:1")
    staying.death.set_result(End("crashed"))
    await kept.wait_for("up b:2")
    assert gone.log == ["up a:1", "down a:1"] and leaving.stopped.is_set()
    watching.cancel()
    await supervisor.stop()
    assert spare.stopped.is_set()
