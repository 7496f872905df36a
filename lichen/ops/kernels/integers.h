// Four-bit weights times activations that are rounded to eight bits: on x86 a product of integers takes half the
// instructions of one in fp32, and rounding 32 activations by their largest loses a tenth of what four bits lose.
#pragma once
#include "weights.h"

#if defined(__AVX2__)

#include <vector>

// Rows of x in groups of 32 whole numbers from -127 to 127, each with a scale.
struct Rounded {
    std::vector<int8_t> numbers;
    std::vector<float> scales;
    int64_t width;

    Rounded(const float* x, int64_t x_step, int64_t count, int64_t width)
        : numbers(count * width), scales(count * width / GROUP), width(width) {
        for (int64_t c = 0; c < count; c++)
            for (int64_t k = 0; k < width; k += GROUP) {
                const float* from = x + c * x_step + k;
                float most = 0;
                for (int i = 0; i < GROUP; i++) most = from[i] == from[i] ? std::fmax(most, std::fabs(from[i])) : NAN;
                float scale = most / 127, inverse = most > 0 ? 127 / most : 0;
                scales[(c * width + k) / GROUP] = most == most ? scale : NAN;
                for (int i = 0; i < GROUP; i++)
                    numbers[c * width + k + i] = int8_t(inverse > 0 ? std::nearbyint(from[i] * inverse) : 0);
            }
    }
    __m256i group(int64_t c, int64_t k) const {
        return _mm256_loadu_si256((const __m256i*)(numbers.data() + c * width + k));
    }
    float scale(int64_t c, int64_t k) const { return scales[(c * width + k) / GROUP]; }
};

// start + 8 sums of 4 products; none overflows
inline __m256i add_products(__m256i start, __m256i unsigned_bytes, __m256i signed_bytes) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(start, unsigned_bytes, signed_bytes);
#else
    __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
    return _mm256_add_epi32(start, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

template <int R, int C>
inline void tile(const Int4& w, int64_t r, const Rounded& x, int64_t c0, float* y, int64_t y_step) {
    __m256 sums[R][C];
    for (int i = 0; i < R; i++)
        for (int c = 0; c < C; c++) sums[i][c] = _mm256_setzero_ps();
    const __m128i low = _mm_set1_epi8(15);
    for (int64_t k = 0; k < x.width; k += GROUP) {
        w.template fetch<C>(r + TOGETHER, R, k);
        __m256i xs[C], start[C];  // weights are kept plus 8
        for (int c = 0; c < C; c++) {
            xs[c] = x.group(c0 + c, k);
            __m256i eights = add_products(_mm256_setzero_si256(), _mm256_set1_epi8(8), xs[c]);
            start[c] = _mm256_sub_epi32(_mm256_setzero_si256(), eights);
        }
        for (int i = 0; i < R; i++) {
            int64_t group = group_of(r + i, k, x.width);
            __m128i bytes = _mm_loadu_si128((const __m128i*)(w.data + group * (GROUP / 2)));
            __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), low);
            __m256i numbers = _mm256_set_m128i(high, _mm_and_si128(bytes, low));
            float scale = number(w.scales[group]);
            for (int c = 0; c < C; c++) {
                __m256i dots = add_products(start[c], numbers, xs[c]);
                __m256 factor = _mm256_set1_ps(scale * x.scale(c0 + c, k));
                sums[i][c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), factor, sums[i][c]);
            }
        }
    }
    for (int c = 0; c < C; c++)
        for (int i = 0; i < R; i++) {
            __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums[i][c]), _mm256_extractf128_ps(sums[i][c], 1));
            __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            y[(c0 + c) * y_step + i] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
        }
}

// y[c][r - begin] = w[r] . x[c] for whole sets of rows of w and rows [first, first + count) of x.
inline void products(
    const Int4& w, int64_t begin, int64_t end, const Rounded& x, int64_t first, int64_t count, float* y, int64_t y_step
) {
    for (int64_t r = begin; r < end; r += TOGETHER, y += TOGETHER) {
        int64_t c = first;
        float* to = y - first * y_step;
        for (; c + 4 <= first + count; c += 4)
            for (int i = 0; i < TOGETHER; i += 2) tile<2, 4>(w, r + i, x, c, to + i, y_step);
        for (; c < first + count; c++) tile<8, 1>(w, r, x, c, to, y_step);
    }
}

#endif
