from collections import Counter

from router.fair_queue import FairQueue, Share


def fill(queue: FairQueue, **counts: int) -> None:
    for tenant, count in counts.items():
        for _ in range(count):
            queue.push(len(order_of), Share(tenant, weight=WEIGHTS.get(tenant, 1.0), cost=COSTS.get(tenant, 10.0)))
            order_of.append(tenant)


WEIGHTS = {"double": 2.0}
COSTS = {"long": 100.0}
order_of: list[str] = []


def popped(queue: FairQueue, count: int) -> list[str]:
    return [order_of[queue.pop()] for _ in range(count)]


def setup_function() -> None:
    order_of.clear()


def test_a_flood_of_one_tenant_is_one_call_to_another() -> None:
    queue = FairQueue()
    fill(queue, flood=1000)
    popped(queue, 500)
    fill(queue, late=3)
    assert popped(queue, 6).count("late") == 3


def test_shares_follow_weights() -> None:
    queue = FairQueue()
    fill(queue, double=300, single=300)
    assert Counter(popped(queue, 150)) == {"double": 100, "single": 50}


def test_shares_are_of_tokens_not_of_calls() -> None:
    queue = FairQueue()
    fill(queue, long=100, short=500)
    counts = Counter(popped(queue, 220))
    assert counts == {"short": 200, "long": 20}


def test_who_was_idle_saves_nothing_up() -> None:
    queue = FairQueue()
    fill(queue, busy=400)
    popped(queue, 300)
    fill(queue, idle=100)
    assert Counter(popped(queue, 100)) == {"busy": 50, "idle": 50}


def test_a_call_that_went_at_once_counts() -> None:
    queue = FairQueue()
    queue.charge(Share("greedy", cost=55))
    fill(queue, greedy=20, modest=20)
    assert popped(queue, 7) == ["modest"] * 6 + ["greedy"]


def test_the_urgent_go_first_whoever_they_are_for() -> None:
    queue = FairQueue()
    for call, (tenant, priority) in enumerate([("a", 0), ("a", 5), ("a", -1), ("b", 0), ("b", -2)]):
        queue.push(call, Share(tenant, priority=priority))
    assert [queue.pop() for _ in range(5)] == [4, 2, 0, 3, 1]


def test_a_withdrawn_call_costs_its_tenant_nothing() -> None:
    queue = FairQueue()
    fill(queue, fickle=50, steady=4)
    for call in range(49):
        queue.remove(call)
    queue.check_integrity()
    assert popped(queue, 5) == ["fickle", "steady", "steady", "steady", "steady"]


def test_prompts_before_a_new_call_are_its_own_and_others_shares() -> None:
    queue = FairQueue()
    for call in range(100):
        queue.push(call, Share("flood", prompt=1000))
    assert queue.prompt_before(Share("flood", prompt=1000)) == 100_000
    assert queue.prompt_before(Share("other", prompt=1000)) == 1000
    assert queue.prompt_before(Share("other", weight=4.0, prompt=1000)) == 250
    assert FairQueue().prompt_before(Share("other", prompt=1000)) == 0
