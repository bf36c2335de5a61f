/* Every kernel, compiled once for this instruction set. */
#include "simd/scalar.h"

#include "kernels.h"
