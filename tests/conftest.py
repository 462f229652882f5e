import atexit
import os
import shutil
import tempfile

import torch

from sstkern.engines import extension_problem, interpreting

if extension_problem() is None:
    torch.ops.sstkern.cpu_patience(10**9)  # however busy the machine, tests have the threads that they ask for

if interpreting():
    from interpreter import patch_language_once

    patch_language_once()

# torch.compile's cache on disk tells neither the instruction sets apart nor what our operators save: code that was compiled for another
# state of either is loaded, and fails.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="sstkern-tests-")
atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
