"""What a tenant's prompt costs does not depend on what others have asked: counted in computed tokens, not in time."""

from dataclasses import replace

from engine.core.messages import Generate, Release, Started
from tests.fakes.virtual_worker import VirtualPair, make_request, right_tokens

NUM_TOKENS = 40


def ask(pair: VirtualPair, id: int, salt: bytes, first: int = 0) -> tuple[int, float]:
    """Tokens that were cached, and the virtual time from the command to the first token."""
    request = replace(make_request(id, range(first, first + NUM_TOKENS), max_tokens=2), cache_salt=salt)
    began_s = pair.now
    pair.decode.inbox.append(Generate(request))
    while not pair.decode.said.tokens.get(id):
        pair.run(0.001)
    took_s = pair.now - began_s
    pair.run(0.05)
    pair.decode.inbox.append(Release(id))
    pair.run(0.05)
    assert pair.decode.said.tokens[id] == right_tokens(request)
    return pair.decode.said.of(Started, id)[0].cached_tokens, took_s


def test_another_tenant_s_prompt_is_as_slow_as_one_that_nobody_asked() -> None:
    pair = VirtualPair(num_pages=64)
    cold_cached, cold_s = ask(pair, 1, b"acme")
    warm_cached, warm_s = ask(pair, 2, b"acme")
    assert cold_cached == 0 and warm_cached > NUM_TOKENS // 2
    probed_cached, probed_s = ask(pair, 3, b"beta")
    fresh_cached, fresh_s = ask(pair, 4, b"beta", first=100)
    assert probed_cached == fresh_cached == 0
    assert round(probed_s, 6) == round(fresh_s, 6) == round(cold_s, 6)
    assert warm_s < cold_s, "time would have told"
