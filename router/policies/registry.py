"""Policies by name."""

from collections.abc import Callable

from router.chance import RandomSource
from router.cost_model import CostModel
from router.policies.base import Policy
from router.policies.cost import CostPolicy
from router.policies.picking import (
    LeastLoaded,
    Picker,
    PickingPolicy,
    PowerOfTwo,
    PrefixAffinity,
    RandomPick,
    RoundRobin,
)

_PICKERS: dict[str, Callable[[RandomSource], Picker]] = {
    "round_robin": lambda rng: RoundRobin(),
    "random": RandomPick,
    "least_loaded": LeastLoaded,
    "power_of_two": PowerOfTwo,
    "prefix_affinity": lambda rng: PrefixAffinity(),
}
_DECODE_PICKERS = {**_PICKERS, "prefix_affinity": LeastLoaded}
"""Which worker decodes matters for load only; a rule about prefixes says nothing of it."""

POLICY_NAMES = ("cost", "cost_always_hand_over", *_PICKERS)


def make_policy(name: str, model: CostModel, rng: RandomSource) -> Policy:
    """The policy called `name`, one of POLICY_NAMES. Raises KeyError for any other."""
    if name in ("cost", "cost_always_hand_over"):
        return CostPolicy(model, rng, always_hand_over=name != "cost")
    return PickingPolicy(name, _PICKERS[name](rng), _DECODE_PICKERS[name](rng))
