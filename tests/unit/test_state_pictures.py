"""The pictures in docs/handoff.md are those of the tables in the code."""

from enum import StrEnum

import pytest

from tools.state_pictures import PAGE, nested, picture, pictures, render


class Light(StrEnum):
    RED = "red light"
    GREEN = "green"
    OFF = "off"


class Happening(StrEnum):
    TIME = "time_passed"
    BUTTON = "button"
    FAULT = "fault"


TABLE: dict[StrEnum, dict[StrEnum, StrEnum]] = {
    Light.RED: {Happening.TIME: Light.GREEN, Happening.BUTTON: Light.GREEN, Happening.FAULT: Light.OFF},
    Light.GREEN: {Happening.TIME: Light.RED},
    Light.OFF: {},
}


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert render(text) == text, "run: python -m tools.state_pictures"


def test_a_table_becomes_arrows_with_every_event() -> None:
    assert picture([Light.RED], nested(TABLE)).splitlines() == [
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> red_light",
        "    red_light --> green: time passed / button",
        "    red_light --> off: fault",
        "    green --> red_light: time passed",
        "    off --> [*]",
        "```",
    ]


def test_a_page_that_asks_for_other_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="asks for"):
        render("<!-- states: weather -->\n<!-- end -->")
    blank = "".join(f"<!-- states: {name} -->\nSTALE\n<!-- end -->\n" for name in pictures())
    assert "STALE" not in render(blank)
