/* Every kernel, compiled once for this instruction set. */
#include "simd/avx512.h"

#include "kernels.h"
