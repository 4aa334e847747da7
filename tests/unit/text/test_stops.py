"""Stop strings are found when they are complete and never shown in part."""

import pytest

from router.text.stops import StopMatcher, StopScan


def scan(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    matcher, shown = StopMatcher(stops), []
    for piece in pieces:
        result = matcher.push(piece)
        shown.append(result.text)
        if result.stop is not None:
            return shown, result.stop
    return [*shown, matcher.flush()], None


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "stop"),
    [
        ([], ["ab", "c"], ["ab", "c", ""], None),
        (["STOP"], ["a S", "T", "OP b"], ["a ", "", ""], "STOP"),
        (["STOP"], ["a ST", "x"], ["a ", "STx", ""], None),
        (["STOP"], ["a ST"], ["a ", "ST"], None),
        (["aab"], ["aaab"], ["a"], "aab"),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""], "aab"),
        (["abcd", "bc"], ["abcd"], ["a"], "bc"),  # the first one to be complete
        (["bc", "abc"], ["xabc"], ["x"], "abc"),  # of two that are complete at once, the longest
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""], "\n\n"),
        (["é!"], ["caf", "é", "!"], ["caf", "", ""], "é!"),
    ],
)
def test_scan(stops: list[str], pieces: list[str], shown: list[str], stop: str | None) -> None:
    assert scan(stops, pieces) == (shown, stop)


def test_flush_forgets_a_half_match() -> None:
    matcher = StopMatcher(["ab"])
    assert matcher.push("a") == StopScan("")
    assert matcher.flush() == "a"
    assert matcher.push("b") == StopScan("b")
