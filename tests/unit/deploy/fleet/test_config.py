"""CONFIG.yaml: what is wrong is one line that names the key."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from baton.cli import main
from deploy.fleet.config import config_from, read_config
from engine.core.errors import InvalidRequest

GOOD: dict[str, Any] = {
    "model": "/models/llama",
    "engine": {"dtype": "bfloat16", "max_step_tokens": 4096},
    "pools": {
        "prefill": {"replicas": 2, "tp_size": 4, "placement": "pack", "topology": "rack"},
        "decode": {"replicas": 4, "gpus": 1, "memory": "64GiB", "engine": {"kv_memory": "0.8", "dtype": "float16"}},
        "long": {"role": "decode", "replicas": 0},
    },
    "autoscale": {"pools": {"decode": {"min": 2, "max": 8}}},
}


def changed(path: str, value: object) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(yaml.safe_dump(GOOD))
    *parents, last = path.split("/")
    place = config
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return config


def test_a_pool_has_the_engine_of_all_but_for_what_it_says_itself() -> None:
    config = config_from(GOOD)
    assert (config.served_name, config.role_of("long"), config.role_of("prefill")) == ("llama", "decode", "prefill")
    prefill, decode = config.engine_of("prefill"), config.engine_of("decode")
    assert (prefill.dtype, prefill.parallel.tp_size, prefill.kv_memory, prefill.max_step_tokens) == (
        *("bfloat16", 4, None, 4096),
    )
    assert (decode.dtype, decode.kv_memory) == ("float16", 0.8)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("pool", {}, "pool: no such key"),
        ("pools/decode/replica", 1, "pools.decode.replica: no such key"),
        ("pools/decode/replicas", "4", "pools.decode.replicas: input should be a valid integer, not '4'"),
        ("pools/decode/replicas", -1, "pools.decode.replicas: input should be greater than or equal to 0, not -1"),
        ("pools/decode/tp_size", 0, "pools.decode.tp_size: input should be greater than or equal to 1, not 0"),
        ("pools/decode/transport", "tcp", "pools.decode.transport: input should be 'auto', 'nixl', 'grpc' or 'local'"),
        ("pools/decode/memory", "much", "pools.decode.memory: cannot read 'much'"),
        ("pools/decode/engine/dtype", "int8", "pools.decode.engine.dtype: dtype must be one of"),
        ("pools/decode/max_surge", 0, "pools.decode.max_surge: 0 needs max_unavailable above 0"),
        ("pools/Decode", {}, "pools.Decode: string should match pattern"),
        ("pools/other", {}, "pools.other.role: say prefill or decode"),
        ("tls", {"cert": "/tls/tls.crt"}, "tls: a certificate needs its key"),
        ("pools/router", {}, "pools.router: this name is taken"),
        ("pools", {"prefill": {}}, "pools: at least one must be of the role decode"),
        ("pools", {}, "pools: name at least one"),
        ("engine/page_size", True, "engine.page_size: input should be a valid integer"),
        ("routers/policy", "best", "routers.policy: one of"),
        ("routers/grpc_port", 8000, "routers.grpc_port: HTTP has 8000 already"),
        ("routers/port", 70000, "routers.port: input should be less than or equal to 65535"),
        ("autoscale/pools/decode/max", 1, "autoscale.pools.decode.min: 2 is above max, 1"),
        ("autoscale/pools/decode/max", 3, "autoscale.pools.decode: replicas, 4, is not between min and max"),
        ("autoscale/pools/nobody", {"max": 2}, "autoscale.pools.nobody: there is no such pool"),
        ("autoscale/low", 1.5, "autoscale.low: input should be less than 1, not 1.5"),
        ("drain_s", float("inf"), "drain_s: input should be a finite number"),
    ],
)
def test_each_mistake_is_one_line_with_its_key(path: str, value: object, line: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        config_from(changed(path, value))
    assert error.value.message.startswith(line) and "\n" not in error.value.message


def test_the_command_ends_with_2_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chat.yaml"
    monkeypatch.setattr("sys.argv", ["baton", "up", str(path)])
    for text, line in (("pools: {decode: {replica: 1}}", "pools.decode.replica: no such key"), ("a: [", "not YAML")):
        path.write_text(text)
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.startswith(f"baton: {path}: {line}") and said.count("\n") == 1
    path.unlink()
    with pytest.raises(InvalidRequest, match="No such file"):
        read_config(path)


def test_the_example_in_the_docs_is_one() -> None:
    text = (Path(__file__).parents[4] / "docs" / "operations.md").read_text()
    example = text.partition("$ cat chat.yaml\n")[2].partition("    $ baton up")[0]
    config = config_from(yaml.safe_load(example))
    assert config.pools["long"].labels == {"gpu": "h200"} and config.autoscale is not None
