"""Freed memory stays with the process, and the user's own settings of malloc stand."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc"
)
# Six blocks of 4 MB, in use at the same time, are taken and freed again and again; pages that were taken are printed.
PROGRAM = """
import ctypes, resource
from karat.engine import _heap
{call}
malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def once():
    blocks = [malloc(4 << 20) for _ in range(6)]
    for block in blocks:
        ctypes.memset(block, 1, 4 << 20)
    for block in blocks:
        free(block)
once(); once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(call, **environment):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    made = [sys.executable, "-c", PROGRAM.format(call=call)]
    return int(subprocess.run(made, env=own | environment, check=True, capture_output=True, text=True).stdout)


def test_freed_memory_is_taken_again():
    assert pages("_heap.keep_freed()") < 100
    assert pages("") > 5000


def test_settings_of_the_environment_stand():
    assert pages("_heap.keep_freed()", MALLOC_TRIM_THRESHOLD_="131072") > 5000
    assert pages("_heap.keep_freed()", GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072") > 5000
