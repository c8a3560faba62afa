"""For all tests: one thread a process, as they run in as many processes as there are cores."""

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # read when torch is imported, here and in processes that tests start
