"""Freed memory stays with the process: else a CPU's time goes into page faults.

glibc hands the top of its heap back to the kernel and takes it again at the next large tensor.
Whether it does depends on what was allocated before, so that one and the same loop may be slower in
one minute than in the next. The command line keeps it; `bench.evaluate` leaves its caller's process
alone. Measured on one core, LeNet, PGD-40 on 512 images at 256 rows: 600,000
page faults and 3.0 to 3.8 s of processor time, against 500 and 2.1 s with the heap kept, for a bare
loop and for torchattacks alike.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""mallopt's names for: how much is free at the top before it is handed back; how many blocks may be
mapped one by one. See `man mallopt`."""


def keep_freed_memory() -> bool:
    """Keep what is freed, from now on in this process; whether the C library could be told to."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a C library that is not glibc
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, -1)) and bool(mallopt(M_MMAP_MAX, 0))
