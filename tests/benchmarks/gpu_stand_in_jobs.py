"""Jobs that end in every way a job can, for the tests of benchmarks/gpu_workers.py and benchmarks/gpu.py; no GPU and no torch."""

import os
import time

_healthy = True


def run(job: dict) -> dict:
    global _healthy
    ending = job.get("ends", "well")
    if ending == "raises":
        raise ValueError("this job raises")
    if ending == "spoils the device":
        _healthy = False
        raise RuntimeError("illegal memory access")
    if ending == "dies":
        os._exit(7)
    if ending == "hangs":
        time.sleep(600)
    time.sleep(job.get("seconds", 0))
    return job.get("result", {}) | {"process": os.getpid()}


def healthy() -> bool:
    return _healthy
