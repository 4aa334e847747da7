"""Flags become a service's settings."""

from pathlib import Path

import pytest

from deploy.checks import check_model, check_secrets
from deploy.cluster import EMBEDDED
from deploy.config import FLAGS, service_config
from deploy.service import place
from engine.core.errors import CheckpointError, InvalidRequest
from engine.server.config import CLUSTER_KEY_VARIABLE
from engine.server.kv_events.config import parse_feed
from tests.fakes.checkpoints import tiny_checkpoint


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
     ({"policy": "best"}, "policy"), ({"kv_memory": "much"}, "kv_memory"), ({"tp": 0}, "tp"),
     ({"log_format": "xml"}, "log-format"),
     ({"routers": 0}, "routers"), ({"decode_tp": -1}, "decode-tp"), ({"collective": "ring"}, "collective")],
)  # fmt: skip
def test_a_bad_value_names_its_flag(given: dict[str, object], flag: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        service_config(values(**given), ray_address="auto")
    assert caught.value.param == flag


@pytest.mark.parametrize(
    ("given", "ranks"),
    [
        ({}, (1, 1, 2)),
        ({"tp": 2}, (2, 2, 4)),
        ({"tp": 2, "decode_tp": 4, "decode": 3}, (2, 4, 14)),
        ({"tp": 2, "colocated": True, "decode": 2}, (2, 2, 4)),
    ],
)
def test_ranks_of_each_worker_and_the_gpus_of_all(given: dict[str, object], ranks: tuple[int, int, int]) -> None:
    config = service_config(values(**given), ray_address="auto")
    assert (config.prefill_ranks, config.decode_ranks, config.num_ranks) == ranks
    assert place(config, num_gpus=0) == "cpu"
    assert place(config, num_gpus=ranks[2]) == "cuda"
    with pytest.raises(InvalidRequest, match=f"need {ranks[2]} GPUs, Ray has 1"):
        place(config, num_gpus=1)


def test_a_model_that_does_not_divide_is_refused_before_anything_starts() -> None:
    config = service_config(values(model=str(tiny_checkpoint("llama")), decode_tp=4), ray_address="auto")
    with pytest.raises(CheckpointError, match="num_key_value_heads is 2, expected a multiple of 4 ranks"):
        check_model(config)


def test_every_flag_is_explained() -> None:
    assert all(flag.help.endswith(".") for flag in FLAGS)


def test_each_worker_publishes_prefix_events_at_ports_of_its_own() -> None:
    config = service_config(values(kv_events="curve://0.0.0.0:6000", decode=2), ray_address="auto")
    feeds = [config.links.feed_of(number) for number in range(config.num_workers)]
    assert [(feed.port, feed.replay_port) for feed in feeds if feed] == [(6000, 6001), (6002, 6003), (6004, 6005)]
    free = service_config(values(kv_events="tcp://127.0.0.1:0"), ray_address="auto")
    assert free.links.feed_of(1) == parse_feed("tcp://127.0.0.1:0")
    assert service_config(values(), ray_address="auto").links.feed_of(0) is None
    for wrong in ("tcp://127.0.0.1:65534", "udp://127.0.0.1:1"):
        with pytest.raises(InvalidRequest, match=r"kv-events|two ports"):
            service_config(values(kv_events=wrong), ray_address="auto")


def test_files_that_will_not_do_are_found_before_a_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tenants.toml").write_text("[tenants.acme]\nweigth = 2\n")
    for flag, value in (("tenants", tmp_path / "tenants.toml"), ("cluster_tls", tmp_path)):
        gateway = service_config(values(**{flag: str(value)}), ray_address=EMBEDDED).gateway
        with pytest.raises(InvalidRequest) as caught:
            check_secrets(gateway, ray_address=EMBEDDED)
        assert caught.value.param == flag
        check_secrets(gateway, ray_address="auto")  # they are read on the cluster's nodes, not here
    monkeypatch.setenv(CLUSTER_KEY_VARIABLE, "short")
    with pytest.raises(InvalidRequest, match=f"{CLUSTER_KEY_VARIABLE} has 5 bytes; at least 16"):
        check_secrets(gateway, ray_address="auto")
