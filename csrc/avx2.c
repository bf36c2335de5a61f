/* Every kernel, compiled once for this instruction set. */
#include "simd/avx2.h"

#include "kernels.h"
