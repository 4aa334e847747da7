import itertools

import pytest

from engine.core.errors import IllegalEvent
from router.call_state import TABLE, TERMINAL, CallState, Trigger, next_state


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(CallState, Trigger)))
def test_what_the_table_does_not_list_is_illegal(state: CallState, trigger: Trigger) -> None:
    if (state, trigger) in TABLE:
        assert next_state(state, trigger) is TABLE[state, trigger]
    else:
        with pytest.raises(IllegalEvent, match=state.value):
            next_state(state, trigger)


def test_outcomes_are_final_and_every_other_state_can_end_in_each_bad_one() -> None:
    for state in CallState:
        targets = {target for (source, _), target in TABLE.items() if source is state}
        if state in TERMINAL:
            assert not targets
        else:
            assert targets >= {CallState.FAILED, CallState.CANCELLED}
