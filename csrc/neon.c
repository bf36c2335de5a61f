/* Every kernel, compiled once for this instruction set. */
#include "simd/neon.h"

#include "kernels.h"
