"""What `baton chaos --real` runs."""

import json
import signal
import sys

from deploy.chaos.campaign import CampaignConfig, campaign


def run(*, seconds: float = 60.0, transport: str = "auto", first_seed: int = 0, as_json: bool = False) -> int:
    """One campaign; the report goes to standard output. Returns 0 when nothing went wrong, else 1.

    Args:
        seconds: of load and faults, without the start and the right answers.
        transport: one of engine.server.config.TRANSPORTS.
        first_seed: of the requests and of what is broken when.
        as_json: the last line is one object.

    Raises:
        Unavailable: the service did not start.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the service must end with this process
    config = CampaignConfig(seconds=seconds, transport=transport, seed=first_seed)
    report = campaign(config, lambda line: print(line, file=sys.stderr, flush=True))
    values = report.as_json()
    if as_json:
        print(json.dumps(values))
    else:
        for name, value in values.items():
            print(f"{name:26} {value}")
    return 0 if report.ok else 1
