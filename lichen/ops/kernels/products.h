// Products of small fp32 matrices, whose sums stay in registers.
#pragma once

#include <algorithm>

#include "simd.h"

namespace {

// c (+)= a b for ROWS x (VECTORS LANES) numbers of c. a's number (i, k) lies at a[i * a_row + k * a_step].
template <int ROWS, int VECTORS>
void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step, float* c,
          int64_t c_row, bool accumulate) {
    vec sums[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) sums[i][j] = accumulate ? load(c + i * c_row + j * LANES) : zero();
    for (int64_t k = 0; k < depth; k++, a += a_step, b += b_step) {
        vec right[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) right[j] = load(b + j * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; i++) {
            vec left = all(a[i * a_row]);
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; j++) sums[i][j] = fma(left, right[j], sums[i][j]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) store(c + i * c_row + j * LANES, sums[i][j]);
}

// Rows of a tile: as many as leave their sums in registers.
#if defined(LICHEN_AVX2)
constexpr int rows_of(int vectors) { return vectors == 3 ? 4 : 6; }
#else
constexpr int rows_of(int vectors) { return vectors == 3 ? 8 : 12; }
#endif
constexpr int PANEL = 2 * LANES;  // keys of a panel

template <int VECTORS>
void strip(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step,
           float* c, int64_t c_row, bool accumulate) {
    if (rows == rows_of(VECTORS)) {
        tile<rows_of(VECTORS), VECTORS>(depth, a, a_row, a_step, b, b_step, c, c_row, accumulate);
        return;
    }
    for (; rows >= 4; rows -= 4, a += 4 * a_row, c += 4 * c_row)
        tile<4, VECTORS>(depth, a, a_row, a_step, b, b_step, c, c_row, accumulate);
    for (; rows > 0; rows--, a += a_row, c += c_row)
        tile<1, VECTORS>(depth, a, a_row, a_step, b, b_step, c, c_row, accumulate);
}

// All of `width` columns, a multiple of LANES, for at most rows_of(2) rows.
void wide(int64_t rows, int64_t width, int64_t depth, const float* a, int64_t a_row, int64_t a_step, const float* b,
          int64_t b_step, float* c, int64_t c_row, bool accumulate) {
    for (int64_t done = 0; done < width;) {
        int64_t left = (width - done) / LANES;
        if (left == 1) {
            strip<1>(rows, depth, a, a_row, a_step, b + done, b_step, c + done, c_row, accumulate);
            return;
        }
        if (left == 3 && rows_of(3) >= 8) {
            int64_t half = std::min(rows, int64_t(rows_of(3)));
            strip<3>(half, depth, a, a_row, a_step, b + done, b_step, c + done, c_row, accumulate);
            strip<3>(rows - half, depth, a + half * a_row, a_row, a_step, b + done, b_step, c + done + half * c_row,
                     c_row, accumulate);
            return;
        }
        strip<2>(rows, depth, a, a_row, a_step, b + done, b_step, c + done, c_row, accumulate);
        done += 2 * LANES;
    }
}

}  // namespace
