"""How the ranks of one worker compute together. Ranks are threads of one process, each with a device of its own.

threads.py   on the CPU: a barrier, and every rank adds for itself
peer.py      on GPUs that can read each other's memory: own kernels (engine.kernels.peer), in CUDA graphs too
nccl.py      on other GPUs of one host, or where NCCL was asked for
"""
