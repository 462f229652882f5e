import atexit
import os
import shutil
import tempfile

from sstkern.engines import interpreting

if interpreting():
    from interpreter import patch_language_once

    patch_language_once()

# torch.compile's cache on disk tells neither the instruction sets apart nor what our operators save: code that was compiled for another
# state of either is loaded, and fails.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="sstkern-tests-")
atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
