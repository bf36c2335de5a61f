"""What the command asks of NumPy's BLAS, before NumPy is imported.

Its threads, which the kernels do not use, otherwise spin for 2^26 cycles after the import: 50 ms of every processor.
"""

import os

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")  # 2^20 cycles, a third of a millisecond
