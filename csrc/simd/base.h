/* What the instruction sets themselves are written with. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Words of a record of quantised rows, which lie at any multiple of four. */
ALWAYS_INLINE int32_t load_int(const char *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}
ALWAYS_INLINE float load_float(const char *p) {
    float word;
    memcpy(&word, p, sizeof word);
    return word;
}
