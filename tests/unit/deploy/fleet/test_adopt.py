"""What a new controller makes of what it finds, case by case."""

from deploy.fleet.adopt import Seen, Stage, adopt
from deploy.fleet.plan import Phase, Place


def seen(name: str, stage: Stage = Stage.RUNNING, pool: str = "decode") -> Seen:
    return Seen(name, pool, "v", stage)


def test_what_works_or_is_about_to_goes_on() -> None:
    found = [seen("decode-0"), seen("decode-1", Stage.STARTING), seen("decode-2", Stage.DRAINING)]
    adopted = adopt(found)
    phases = {name: place.phase for name, place in adopted.places.items()}
    assert phases == {"decode-0": Phase.UP, "decode-1": Phase.STARTING, "decode-2": Phase.DRAINING}
    assert not adopted.strays


def test_what_serves_nobody_ends() -> None:
    adopted = adopt([seen("decode-0", Stage.EMPTY), seen("decode-1", Stage.ENDED), seen("decode-2")])
    assert set(adopted.strays) == {"decode-0", "decode-1"} and set(adopted.places) == {"decode-2"}


def test_of_two_at_one_place_the_one_that_works_goes_on_else_the_later_one() -> None:
    assert adopt([seen("decode-1"), seen("decode-1.2", Stage.STARTING)]).strays == ("decode-1.2",)
    adopted = adopt([seen("decode-1.10"), seen("decode-1.9")])
    assert adopted.places == {"decode-1.10": Place("decode-1", "decode", "v", Phase.UP)}
    assert adopted.strays == ("decode-1.9",)


def test_a_worker_that_changed_its_role_is_of_the_pool_that_it_says() -> None:
    (place,) = adopt([seen("prefill-1.2")]).places.values()
    assert (place.id, place.pool) == ("prefill-1", "decode")


def test_names_of_starts_are_not_used_again() -> None:
    assert adopt([seen("decode-0.3", Stage.ENDED), seen("decode-0"), seen("decode-1")]).starts == {
        "decode-0": 3,
        "decode-1": 1,
    }
