"""Set before anything imports Triton: its library chooses between compiler and interpreter at import."""

import gc
import os
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that say how long they take come first, the longest before all: processes that share them end together.

    A file whose mark is of the whole file stays together.
    """
    items.sort(key=lambda item: -seconds_of(item))


def pytest_collection_finish() -> None:
    """What imports and collection made stays to the end: no later collection of garbage has to look through it.

    And there are fewer of those.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


class ByService(LoadFileScheduling):
    """Files as a whole, and those of one folder that share a service too: it is started once."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return file.rpartition("/")[0] if "/one_service/" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """For --dist loadfile."""
    return ByService(config, log) if config.getvalue("dist") == "loadfile" else None


def seconds_of(item: pytest.Item) -> float:
    """What its mark says, as in `slow(seconds=60)`; 0 without."""
    mark = item.get_closest_marker("slow")
    return 0.0 if mark is None else float(mark.kwargs.get("seconds", 0.0))
