"""Let the threads of NumPy's OpenBLAS sleep soon after NumPy is imported: the kernels do not use them.

By default each spins for 2^26 cycles, which costs a short command 50 ms of processor time. OpenBLAS reads the number
when NumPy is imported. A value that the user has set is kept.
"""

import os

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")  # 2^20 cycles
