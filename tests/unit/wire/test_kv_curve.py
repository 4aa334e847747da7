"""The command that prints the feed's public key."""

import os
import subprocess
import sys

from engine.wire.kv_curve import CLUSTER_KEY_VARIABLE, public_key

COMMAND = (sys.executable, "-m", "engine.wire.kv_curve")


def test_the_public_key_or_what_is_missing() -> None:
    others = {name: value for name, value in os.environ.items() if name != CLUSTER_KEY_VARIABLE}
    told = subprocess.run(
        COMMAND, env=others | {CLUSTER_KEY_VARIABLE: "a key"}, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == public_key(b"a key").decode()
    refused = subprocess.run(COMMAND, env=others, capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.splitlines() == [
        "BATON_CLUSTER_KEY is not set: the public key follows from the cluster key"
    ]
