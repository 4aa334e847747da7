"""The command line of a worker process, without a process."""

import json

import pytest

from engine.core.errors import InvalidRequest
from engine.runtime.build import build_engine
from engine.runtime.config import Parallel
from engine.server.config import WorkerConfig
from engine.server.kv_events.config import FeedConfig
from engine.server.main import config_of, main, parser, ready_line
from tests.fakes.checkpoints import tiny_checkpoint
from tests.fakes.thread_worker import Worker, start_fake_worker

KEY = {"BATON_CLUSTER_KEY": "a cluster key for tests only"}


def config(*flags: str, environment: dict[str, str] | None = None) -> WorkerConfig:
    return config_of(parser("decode").parse_args(["--model", "m", *flags]), KEY if environment is None else environment)


def test_every_flag() -> None:
    flags = {option for action in parser("decode")._actions for option in action.option_strings}
    assert flags == set(
        """-h --help --model --model-name --worker-id --host --port --advertise --metrics-port --page-port --transport
        --device --tp --collective --dtype --kv-dtype --quantization --page-size --kv-memory --max-model-len
        --cluster-tls --max-step-tokens --max-rows --attention-backend --random-weights --seed --drain-grace --kv-events
        --log-level""".split()
    )


def test_flags_arrive() -> None:
    made = config(*"--worker-id w --port 7 --kv-memory 2MiB --page-size 32 --transport grpc --max-rows 9".split())
    assert (made.worker_id, made.port, made.transport) == ("w", 7, "grpc")
    assert (made.engine.kv_memory, made.engine.page_size, made.engine.max_rows) == (2 << 20, 32, 9)
    assert config().worker_id == "decode-0" and config().kv_events is None
    assert config("--tp", "4", "--collective", "nccl").engine.parallel == Parallel(4, "nccl")


def test_where_events_are_published() -> None:
    assert config("--kv-events", "tcp://127.0.0.1:5557").kv_events == FeedConfig("127.0.0.1", 5557, 5558, False)
    assert config("--kv-events", "curve://[::]:0").kv_events == FeedConfig("::", 0, 0, True)
    for wrong in ("127.0.0.1:5557", "tcp://:5557", "tcp://h:x", "ipc://h:1", "tcp://h:65535"):
        with pytest.raises(InvalidRequest, match="--kv-events must be"):
            config("--kv-events", wrong)


def test_the_key_is_never_shown() -> None:
    made = config()
    assert made.cluster_key == KEY["BATON_CLUSTER_KEY"].encode()
    assert "cluster key" not in repr(made)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--kv-memory", "much"), "cannot read 'much' as bytes"),
        (("--host", "0.0.0.0"), "needs `advertise`"),
        (("--worker-id", ""), "must not be empty"),
        (("--page-size", "0"), "page_size must be"),
        (("--tp", "0"), "tp must be at least 1"),
    ],
)
def test_what_is_wrong_is_said(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        config(*flags)


def test_without_a_cluster_key_nothing_starts(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BATON_CLUSTER_KEY", raising=False)

    def never(config: WorkerConfig) -> Worker:
        raise AssertionError("started")

    assert main(never, "decode", ["--model", "m"]) == 2
    assert "set BATON_CLUSTER_KEY" in capfd.readouterr().err


def test_an_attention_backend_that_cannot_run_here_is_an_error_in_words(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATON_CLUSTER_KEY", KEY["BATON_CLUSTER_KEY"])

    def start(config: WorkerConfig) -> Worker:
        build_engine(config.engine)
        raise AssertionError("started")

    for backend, reason in (("fa3", "needs a CUDA device"), ("fa9", "is unknown; choose one of auto, fa3")):
        flags = ["--model", str(tiny_checkpoint("llama")), "--device", "cpu", "--kv-memory", "8MiB"]
        assert main(start, "decode", [*flags, "--attention-backend", backend]) == 2
        assert f"attention backend {backend}" in (said := capfd.readouterr().err).replace("'", "") and reason in said


def test_the_ready_line_says_where_the_worker_is() -> None:
    worker = start_fake_worker("decode")
    try:
        said = json.loads(ready_line(worker))
    finally:
        worker.stop()
    assert said["ready"] and said["address"] == worker.info.address
    assert (said["worker"], said["roles"], said["num_pages"]) == ("decode-0", ["decode"], 64)
