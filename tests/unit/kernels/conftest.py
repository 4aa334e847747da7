"""Triton's interpreter must be chosen before the kernels are compiled, that is before they are imported."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
