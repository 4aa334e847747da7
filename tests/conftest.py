"""Set before anything imports Triton: its library chooses between compiler and interpreter at import."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
