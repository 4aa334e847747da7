"""Flags become a service's settings."""

import pytest

from deploy.config import FLAGS, service_config
from engine.core.errors import InvalidRequest


def values(**given: object) -> dict[str, object]:
    return {flag.name: flag.default for flag in FLAGS} | given


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "builtin"),
        ({"model": "Qwen/Qwen3-0.6B"}, "Qwen3-0.6B"),
        ({"model": "/models/llama/"}, "llama"),
        ({"model": "/models/llama", "model_name": "meta/llama"}, "meta/llama"),
    ],
)
def test_what_clients_call_the_model(given: dict[str, object], name: str) -> None:
    assert service_config(values(**given), ray_address="auto").model_name == name


@pytest.mark.parametrize(
    ("given", "flag"),
    [({"prefill": 0}, "prefill"), ({"port": 70_000}, "port"), ({"port": 5, "grpc_port": 5}, "grpc-port"),
     ({"policy": "best"}, "policy"), ({"kv_memory": "much"}, "kv_memory")],
)  # fmt: skip
def test_a_bad_value_names_its_flag(given: dict[str, object], flag: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        service_config(values(**given), ray_address="auto")
    assert caught.value.param == flag


def test_every_flag_is_explained() -> None:
    assert all(flag.help.endswith(".") for flag in FLAGS)
