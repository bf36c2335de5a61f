/* Every kernel, compiled once for this instruction set. */
#include "simd/avx512bf16.h"

#include "kernels.h"
