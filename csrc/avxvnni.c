/* Every kernel, compiled once for this instruction set. */
#include "simd/avxvnni.h"

#include "kernels.h"
