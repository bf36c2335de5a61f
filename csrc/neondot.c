/* Every kernel, compiled once for this instruction set. */
#include "simd/neondot.h"

#include "kernels.h"
