// Vectors of fp32 numbers on whatever instruction set the compiler was told to use, and the formats that
// numbers are kept in. The rest of the kernels is written once, in terms of these.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define LICHEN_AVX512
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LICHEN_AVX2
#include <immintrin.h>
#elif defined(__aarch64__)
#define LICHEN_NEON
#include <arm_neon.h>
#endif

struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

inline float as_float(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline uint32_t as_bits(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }

inline float number(float x) { return x; }
inline float number(bf16 x) { return as_float(uint32_t(x.bits) << 16); }
inline float number(fp16 x) {  // IEEE half, subnormal numbers included
#if defined(__F16C__)
    return _cvtsh_ss(x.bits);
#endif
    uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) return as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    return as_float(sign | as_bits(as_float(rest << 13) * as_float(0x77800000)));  // times 2^112
}

inline void put(float* to, float x) { *to = x; }
inline void put(bf16* to, float x) {  // round to nearest even, as PyTorch does
    uint32_t bits = as_bits(x);
    to->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void put(fp16* to, float x) {
    uint32_t bits = as_bits(x), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) { to->bits = uint16_t(sign | 0x7e00); return; }
    if (rest >= 0x477ff000) { to->bits = uint16_t(sign | 0x7c00); return; }  // 65520 and more
    if (rest < 0x38800000) {  // below 2^-14: steps of 2^-24
        to->bits = uint16_t(sign | uint32_t(std::nearbyint(as_float(rest) * 16777216.0f)));
        return;
    }
    to->bits = uint16_t(sign | ((rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13));
}

// ------------------------------------------------------------------------------------------------ vectors

#if defined(LICHEN_AVX512)

using vec = __m512;
constexpr int LANES = 16;
constexpr int SUMS = 16;  // that are added up at a time in registers
inline vec zero() { return _mm512_setzero_ps(); }
inline vec all(float x) { return _mm512_set1_ps(x); }
inline vec load(const float* p) { return _mm512_loadu_ps(p); }
inline vec load(const bf16* p) {
    __m256i bits = _mm256_loadu_si256((const __m256i*)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline vec load(const fp16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline vec load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
inline vec load_nibbles(const uint8_t* p, bool high, vec scale) {  // (half of each byte p[0..LANES) - 8) * scale
    __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    vec values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(high ? _mm512_srli_epi32(x, 4) : x, _mm512_mul_ps(values, scale));  // by four bits
}
inline void store(float* p, vec x) { _mm512_storeu_ps(p, x); }
inline void store(bf16* p, vec x) {
    __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    bits = _mm512_mask_mov_epi32(bits, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}
inline vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
inline vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
inline vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
inline vec div(vec a, vec b) { return _mm512_div_ps(a, b); }
inline vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
inline vec max(vec a, vec b) { return _mm512_max_ps(a, b); }
inline vec min(vec a, vec b) { return _mm512_min_ps(a, b); }
inline __m128 quarter(vec x) {  // 16 lanes added up to 4
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
inline float largest(vec x) { return _mm512_reduce_max_ps(x); }
inline vec round(vec x) { return _mm512_roundscale_ps(x, 0); }
inline vec power_of_two(vec n) {  // whole numbers from -126 to 127
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}

#elif defined(LICHEN_AVX2)

using vec = __m256;
constexpr int LANES = 8;
constexpr int SUMS = 8;
inline vec zero() { return _mm256_setzero_ps(); }
inline vec all(float x) { return _mm256_set1_ps(x); }
inline vec load(const float* p) { return _mm256_loadu_ps(p); }
inline vec load(const bf16* p) {
    __m128i bits = _mm_loadu_si128((const __m128i*)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline vec load(const fp16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline vec load(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
inline vec load_nibbles(const uint8_t* p, bool high, vec scale) {
    __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
    x = high ? _mm256_srli_epi32(x, 4) : _mm256_and_si256(x, _mm256_set1_epi32(15));
    // As the last bits of 2^23 + n, which needs no conversion; the product is rounded once, and so is exact.
    vec shifted = _mm256_castsi256_ps(_mm256_or_si256(x, _mm256_set1_epi32(0x4b000000)));
    return _mm256_mul_ps(_mm256_sub_ps(shifted, _mm256_set1_ps(8388608.0f + 8)), scale);
}
inline void store(float* p, vec x) { _mm256_storeu_ps(p, x); }
inline void store(bf16* p, vec x) {
    __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 quiet = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    bits = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(bits), quiet, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    bits = _mm256_srli_epi32(bits, 16);
    _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1)));
}
inline vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
inline vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
inline vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
inline vec div(vec a, vec b) { return _mm256_div_ps(a, b); }
inline vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
inline vec max(vec a, vec b) { return _mm256_max_ps(a, b); }
inline vec min(vec a, vec b) { return _mm256_min_ps(a, b); }
inline __m128 quarter(vec x) {  // 8 lanes added up to 4
    return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}
inline float largest(vec x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
inline vec round(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vec power_of_two(vec n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}

#elif defined(LICHEN_NEON)

using vec = float32x4_t;
constexpr int LANES = 4;
constexpr int SUMS = 16;
inline vec zero() { return vdupq_n_f32(0); }
inline vec all(float x) { return vdupq_n_f32(x); }
inline vec load(const float* p) { return vld1q_f32(p); }
inline vec load(const bf16* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t*)p), 16)); }
inline vec load(const fp16* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)p))); }
inline vec load(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
}
inline vec load_nibbles(const uint8_t* p, bool high, vec scale) {
    uint32_t four;
    std::memcpy(&four, p, 4);
    uint32x4_t x = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
    x = high ? vshrq_n_u32(x, 4) : vandq_u32(x, vdupq_n_u32(15));
    return vmulq_f32(vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(x), vdupq_n_s32(8))), scale);
}
inline void store(float* p, vec x) { vst1q_f32(p, x); }
inline void store(bf16* p, vec x) {
    uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    bits = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    bits = vbslq_u32(vceqq_f32(x, x), bits, vdupq_n_u32(0x7fc00000));
    vst1_u16((uint16_t*)p, vshrn_n_u32(bits, 16));
}
inline vec add(vec a, vec b) { return vaddq_f32(a, b); }
inline vec sub(vec a, vec b) { return vsubq_f32(a, b); }
inline vec mul(vec a, vec b) { return vmulq_f32(a, b); }
inline vec div(vec a, vec b) { return vdivq_f32(a, b); }
inline vec fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
inline vec max(vec a, vec b) { return vmaxq_f32(a, b); }
inline vec min(vec a, vec b) { return vminq_f32(a, b); }
inline float sum(vec x) { return vaddvq_f32(x); }
inline float largest(vec x) { return vmaxvq_f32(x); }
inline vec round(vec x) { return vrndnq_f32(x); }
inline vec power_of_two(vec n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
}

#else  // one number at a time, for any other processor

using vec = float;
constexpr int LANES = 1;
constexpr int SUMS = 4;
inline vec zero() { return 0; }
inline vec all(float x) { return x; }
inline vec load(const float* p) { return *p; }
inline vec load(const bf16* p) { return number(*p); }
inline vec load(const fp16* p) { return number(*p); }
inline vec load(const int8_t* p) { return *p; }
inline vec load_nibbles(const uint8_t* p, bool high, vec scale) { return (float(high ? *p >> 4 : *p & 15) - 8) * scale; }
inline void store(float* p, vec x) { *p = x; }
inline void store(bf16* p, vec x) { put(p, x); }
inline vec add(vec a, vec b) { return a + b; }
inline vec sub(vec a, vec b) { return a - b; }
inline vec mul(vec a, vec b) { return a * b; }
inline vec div(vec a, vec b) { return a / b; }
inline vec fma(vec a, vec b, vec c) { return std::fma(a, b, c); }
inline vec max(vec a, vec b) { return a > b ? a : b; }
inline vec min(vec a, vec b) { return a < b ? a : b; }
inline float sum(vec x) { return x; }
inline float largest(vec x) { return x; }
inline vec round(vec x) { return std::nearbyint(x); }
inline vec power_of_two(vec n) { return std::ldexp(1.0f, int(n)); }

#endif

#if defined(LICHEN_AVX512) || defined(LICHEN_AVX2)
inline float sum(vec x) {
    __m128 four = quarter(x), two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline void sums_of_4(vec a, vec b, vec c, vec d, float* to) {  // each as `sum` adds it up, to the bit
    __m128 p = quarter(a), q = quarter(b), r = quarter(c), s = quarter(d);
    __m128 left = _mm_add_ps(_mm_unpacklo_ps(p, q), _mm_unpackhi_ps(p, q));
    __m128 right = _mm_add_ps(_mm_unpacklo_ps(r, s), _mm_unpackhi_ps(r, s));
    _mm_storeu_ps(to, _mm_add_ps(_mm_movelh_ps(left, right), _mm_movehl_ps(right, left)));
}
#else
inline void sums_of_4(vec a, vec b, vec c, vec d, float* to) {
    to[0] = sum(a), to[1] = sum(b), to[2] = sum(c), to[3] = sum(d);
}
#endif

// e^x, within 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' expf).
inline vec exp(vec x) {
    x = min(all(88.0f), max(all(-87.0f), x));  // in this order what is no number stays none
    vec n = round(mul(x, all(1.44269504f)));
    vec r = fma(n, all(-0.693359375f), x);
    r = fma(n, all(2.12194440e-4f), r);
    vec p = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = fma(p, r, all(c));
    p = add(fma(p, mul(r, r), r), all(1.0f));
    return mul(p, power_of_two(n));
}

inline vec silu(vec x) { return div(x, add(all(1.0f), exp(sub(zero(), x)))); }

// Softmax of scale x in place; returns the largest of scale x. What follows x up to a whole vector is overwritten.
inline float softmax(float* x, int64_t n, float scale) {
    vec top = all(x[0]);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) top = max(top, load(x + i));
    float most = largest(top);
    for (; i < n; i++) most = std::max(most, x[i]);
    most *= scale;
    for (i = n; i % LANES; i++) x[i] = -INFINITY;
    vec total = zero();
    for (i = 0; i < n; i += LANES) {
        vec e = exp(fma(load(x + i), all(scale), all(-most)));
        store(x + i, e);
        total = add(total, e);
    }
    vec factor = all(1 / sum(total));
    for (i = 0; i < n; i += LANES) store(x + i, mul(load(x + i), factor));
    return most;
}

// How many threads a loop of `work` multiply-adds deserves: starting one costs some microseconds.
inline int threads_for(int64_t work) {
#ifdef _OPENMP
    int64_t useful = work / 32768 + 1, there = omp_get_max_threads();
    return int(useful < there ? useful : there);
#else
    return 1;
#endif
}

// What a kernel is called with: 64 bits per argument.
union Argument {
    int64_t whole;
    double real;
    void* pointer;
};
template <typename T> T* at(const Argument& a) { return (T*)a.pointer; }
