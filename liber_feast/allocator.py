"""Keep freed memory in the process: the tensors of a step, or of a pass over requests, are freed and asked for again.

By default glibc gives blocks of their size back to the kernel at every free, and the next ones fault the pages in anew.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MEBIBYTE = 1 << 20


def keep_freed_memory() -> bool:
    """Tell glibc to keep blocks up to 32 MiB for reuse; return False where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # 32 MiB is the largest threshold that glibc accepts.
    options = ((M_MMAP_THRESHOLD, 32), (M_TRIM_THRESHOLD, 2047), (M_TOP_PAD, 64))
    return all(mallopt(option, size * MEBIBYTE) == 1 for option, size in options)
