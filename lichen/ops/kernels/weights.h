// Matrices in the formats that weights are kept in, read as fp32, and the two ways to multiply by one.
#pragma once
#include "simd.h"

constexpr int GROUP = 32;  // numbers along a row that share a scale, and that are read together
constexpr int TOGETHER = 8;  // rows of a matrix that are multiplied together

// Ask for memory that will be read soon; beyond the end of a matrix that is no error.
inline void fetch_bytes(const void* from, int64_t count) {
    for (int64_t b = 0; b < count; b += 64) __builtin_prefetch((const char*)from + b);
}

// A matrix of which row r and column k are read as fp32. `load` reads the lanes from k + j * LANES on, k a
// multiple of GROUP; `fetch` asks for a group of each of some rows, which are to be multiplied by C rows of x.
//
// As rows, one after another, in a format of numbers:
template <typename T> struct Rows {
    const T* data;
    int64_t width;
    vec load(int64_t r, int64_t k, int j) const { return ::load(data + r * width + k + j * LANES); }
    float value(int64_t r, int64_t k) const { return number(data[r * width + k]); }
    template <int C> void fetch(int64_t r, int rows, int64_t k) const {
        if (C > 1)  // one row after another is found by the processor itself
            for (int i = 0; i < rows; i++) fetch_bytes(data + (r + i) * width + k, GROUP * sizeof(T));
    }
};

// Packed (`lichen.ops.packed`): TOGETHER rows at a time, of each its first group, then of each its second, ...
// What is multiplied together lies together, and memory is read in order.
inline int64_t group_of(int64_t r, int64_t k, int64_t width) {
    return (r / TOGETHER * (width / GROUP) + k / GROUP) * TOGETHER + r % TOGETHER;
}
template <typename T> struct Packed {
    const T* data;
    int64_t width;
    vec load(int64_t r, int64_t k, int j) const { return ::load(data + group_of(r, k, width) * GROUP + j * LANES); }
    float value(int64_t r, int64_t k) const { return number(data[group_of(r, k, width) * GROUP + k % GROUP]); }
    template <int C> void fetch(int64_t r, int rows, int64_t k) const {
        fetch_bytes(data + group_of(r, k, width) * GROUP, rows * GROUP * sizeof(T));
    }
};
struct Int8 {
    const int8_t* data;
    const fp16* scales;
    int64_t width;
    vec load(int64_t r, int64_t k, int j) const {
        int64_t group = group_of(r, k, width);
        return mul(::load(data + group * GROUP + j * LANES), all(number(scales[group])));
    }
    float value(int64_t r, int64_t k) const {
        int64_t group = group_of(r, k, width);
        return data[group * GROUP + k % GROUP] * number(scales[group]);
    }
    template <int C> void fetch(int64_t r, int rows, int64_t k) const {
        fetch_bytes(data + group_of(r, k, width) * GROUP, rows * GROUP);
    }
};
struct Int4 {  // byte i of a group holds its number i in the low half and number i + 16 in the high one, plus 8
    const uint8_t* data;
    const fp16* scales;
    int64_t width;
    vec load(int64_t r, int64_t k, int j) const {
        int64_t group = group_of(r, k, width);
        const uint8_t* bytes = data + group * (GROUP / 2) + j * LANES % (GROUP / 2);
        return load_nibbles(bytes, j * LANES >= GROUP / 2, all(number(scales[group])));
    }
    float value(int64_t r, int64_t k) const {
        int64_t group = group_of(r, k, width), i = k % GROUP;
        uint8_t byte = data[group * (GROUP / 2) + i % (GROUP / 2)];
        return (int(i < GROUP / 2 ? byte & 15 : byte >> 4) - 8) * number(scales[group]);
    }
    template <int C> void fetch(int64_t r, int rows, int64_t k) const {
        fetch_bytes(data + group_of(r, k, width) * GROUP / 2, rows * GROUP / 2);
    }
};

// y[c][i] = sum over k of w[r + i][k] x[c][k] for R rows of w and C rows of x. Every sum is added up in the same
// order whatever R and C are, so a token's result does not depend on who is computed with it.
template <int R, int C, typename W>
inline void tile(const W& w, int64_t r, int64_t width, const float* x, int64_t x_step, float* y, int64_t y_step) {
    vec sums[R][C];
    for (int i = 0; i < R; i++)
        for (int c = 0; c < C; c++) sums[i][c] = zero();
    int64_t k = 0;
    for (; k + GROUP <= width; k += GROUP) {
        w.template fetch<C>(r + TOGETHER, R, k);
        for (int j = 0; j < GROUP / LANES; j++) {
            vec xs[C];
            for (int c = 0; c < C; c++) xs[c] = ::load(x + c * x_step + k + j * LANES);
            for (int i = 0; i < R; i++) {
                vec row = w.load(r + i, k, j);
                for (int c = 0; c < C; c++) sums[i][c] = fma(row, xs[c], sums[i][c]);
            }
        }
    }
    for (int c = 0; c < C; c++) {
        float* to = y + c * y_step;
        int i = 0;
        for (; i + 4 <= R; i += 4) sums_of_4(sums[i][c], sums[i + 1][c], sums[i + 2][c], sums[i + 3][c], to + i);
        for (; i < R; i++) to[i] = sum(sums[i][c]);
        for (int64_t rest = k; rest < width; rest++)
            for (i = 0; i < R; i++) to[i] = std::fma(w.value(r + i, rest), x[c * x_step + rest], to[i]);
    }
}

// How many rows of w are multiplied at a time with one row of x: of rows that lie apart only one, because memory
// is quickest read in order.
template <typename W> constexpr int ROWS_OF_ONE = TOGETHER;
template <typename T> constexpr int ROWS_OF_ONE<Rows<T>> = 1;

// N rows of w for C rows of x, as many at a time as have their sums in registers.
template <int N, int C, typename W>
inline void tiles(const W& w, int64_t r, int64_t width, const float* x, int64_t x_step, float* y, int64_t y_step) {
    constexpr int FIT = C == 1 ? ROWS_OF_ONE<W> : SUMS / C, R = FIT < N ? FIT : N;
    for (int i = 0; i < N; i += R) tile<R, C>(w, r + i, width, x, x_step, y + i, y_step);
}
template <int N, typename W>
inline void rows_of(
    const W& w, int64_t r, int64_t width, const float* x, int64_t x_step, int64_t count, float* y, int64_t y_step
) {
    int64_t c = 0;
    for (; c + 4 <= count; c += 4) tiles<N, 4>(w, r, width, x + c * x_step, x_step, y + c * y_step, y_step);
    if (c + 2 <= count) {
        tiles<N, 2>(w, r, width, x + c * x_step, x_step, y + c * y_step, y_step);
        c += 2;
    }
    if (c < count) tiles<N, 1>(w, r, width, x + c * x_step, x_step, y + c * y_step, y_step);
}

// y[c][r - begin] = w[r] . x[c] for the rows [begin, end) of w and `count` rows of x.
template <typename W>
inline void products(
    const W& w, int64_t begin, int64_t end, int64_t width, const float* x, int64_t x_step, int64_t count, float* y,
    int64_t y_step
) {
    int64_t r = begin;
    for (; r + TOGETHER <= end; r += TOGETHER)
        rows_of<TOGETHER>(w, r, width, x, x_step, count, y + (r - begin), y_step);
    for (; r < end; r++) rows_of<1>(w, r, width, x, x_step, count, y + (r - begin), y_step);
}

// out[c] = sum over r of p[c][r] w[begin + r], for `rows` rows of w and `count` rows of p: a weighted sum of rows,
// whose columns are [column, column + width), `column` a multiple of GROUP.
template <int C, typename W>
inline void mix_of(
    const W& w, int64_t begin, int64_t rows, int64_t column, int64_t width, const float* p, int64_t p_step, float* out,
    int64_t out_step
) {
    int64_t k = 0;
    for (; k + GROUP <= width; k += GROUP) {
        constexpr int PARTS = GROUP / LANES;
        vec sums[C][PARTS];
        for (int c = 0; c < C; c++)
            for (int j = 0; j < PARTS; j++) sums[c][j] = zero();
        for (int64_t r = 0; r < rows; r++)
            for (int j = 0; j < PARTS; j++) {
                vec row = w.load(begin + r, column + k, j);
                for (int c = 0; c < C; c++) sums[c][j] = fma(all(p[c * p_step + r]), row, sums[c][j]);
            }
        for (int c = 0; c < C; c++)
            for (int j = 0; j < PARTS; j++) store(out + c * out_step + k + j * LANES, sums[c][j]);
    }
    for (; k < width; k++)
        for (int c = 0; c < C; c++) {
            float total = 0;
            for (int64_t r = 0; r < rows; r++) total = std::fma(p[c * p_step + r], w.value(begin + r, column + k), total);
            out[c * out_step + k] = total;
        }
}

template <typename W>
inline void mix(
    const W& w, int64_t begin, int64_t rows, int64_t column, int64_t width, const float* p, int64_t p_step,
    int64_t count, float* out, int64_t out_step
) {
    constexpr int PARTS = GROUP / LANES, FIT = SUMS > PARTS ? SUMS / PARTS : 1;
    int64_t c = 0;
    for (; c + FIT <= count; c += FIT)
        mix_of<FIT>(w, begin, rows, column, width, p + c * p_step, p_step, out + c * out_step, out_step);
    for (; c < count; c++)
        mix_of<1>(w, begin, rows, column, width, p + c * p_step, p_step, out + c * out_step, out_step);
}

// Call `act` with the matrix in its format, as `lichen.ops.native` numbers them.
template <typename Act>
inline void with_rows(int64_t format, const void* data, int64_t width, Act act) {
    switch (format) {
        case 0: return act(Rows<float>{(const float*)data, width});
        case 1: return act(Rows<bf16>{(const bf16*)data, width});
        case 2: return act(Rows<fp16>{(const fp16*)data, width});
    }
}
template <typename Act>
inline void with_weights(int64_t format, const void* data, const void* scales, int64_t width, Act act) {
    switch (format) {
        case 3: return act(Packed<bf16>{(const bf16*)data, width});
        case 4: return act(Packed<fp16>{(const fp16*)data, width});
        case 5: return act(Int8{(const int8_t*)data, (const fp16*)scales, width});
        case 6: return act(Int4{(const uint8_t*)data, (const fp16*)scales, width});
        default: return with_rows(format, data, width, act);
    }
}
