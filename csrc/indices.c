/* Checks the indices of recorded calls before each run: the arrays may have changed since the call was recorded. */
#include "refgpt_kernels.h"

int64_t refgpt_outside(const refgpt_range *ranges, int64_t n_ranges) {
    for (int64_t r = 0; r < n_ranges; r++)
        for (int64_t i = 0; i < ranges[r].n; i++) {
            const int64_t index = ranges[r].index[i];
            if (index < ranges[r].least || index >= ranges[r].stop) return r;
        }
    return -1;
}

int refgpt_tiles_fit(const refgpt_query_tile *tiles, int64_t n_tiles, int64_t n_rows, int64_t n_slots) {
    int64_t row = 0;
    for (int64_t i = 0; i < n_tiles; i++) {
        const refgpt_query_tile t = tiles[i];
        if (t.first_row != row || t.n_rows < 1 || t.n_rows > REFGPT_FEW_ROWS || t.slot < 0 || t.slot >= n_slots)
            return 0;
        row += t.n_rows;
        if (row > n_rows) return 0;
    }
    return row == n_rows;
}
