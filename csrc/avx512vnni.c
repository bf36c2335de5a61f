/* Every kernel, compiled once for this instruction set. */
#include "simd/avx512vnni.h"

#include "kernels.h"
