// Rows of fp32 or bf16 numbers as vectors, and how kernels over either format are called.
#pragma once

#include <utility>

#include "simd.h"

template <typename T> vec part(const T* p, int64_t n) {  // the first n < LANES numbers, then zeros
    T lanes[LANES] = {};
    std::memcpy(lanes, p, n * sizeof(T));
    return load(lanes);
}
template <typename T> void store_part(T* p, vec x, int64_t n) {
    T lanes[LANES];
    store(lanes, x);
    std::memcpy(p, lanes, n * sizeof(T));
}

// Numbers i to i + LANES of n, where they end with zeros.
template <typename T> vec get(const T* p, int64_t i, int64_t n) {
    return i + LANES <= n ? load(p + i) : part(p + i, n - i);
}
template <typename T> void set(T* p, int64_t i, int64_t n, vec x) {
    if (i + LANES <= n) store(p + i, x);
    else store_part(p + i, x, n - i);
}

inline vec sigmoid(vec x) { return div(all(1.0f), add(all(1.0f), exp(sub(zero(), x)))); }
inline vec below(vec x, float limit) {  // 1 where x < limit, else 0
    return min(all(1.0f), mul(max(zero(), sub(all(limit), x)), all(3e38f)));
}

template <typename P> P as(const Argument& a) {
    if constexpr (std::is_pointer_v<P>) return (P)a.pointer;
    else if constexpr (std::is_floating_point_v<P>) return P(a.real);
    else return P(a.whole);
}
template <typename... P, size_t... I>
void call(void (*function)(P...), const Argument* a, std::index_sequence<I...>) { function(as<P>(a[I])...); }
template <typename... P> void call(void (*function)(P...), const Argument* a) {
    call(function, a, std::index_sequence_for<P...>());
}

// Called with the tensors' format and then as the function of this name in the namespace `training`.
#define KERNEL(name) \
    extern "C" void name(const Argument* a) { \
        if (a->whole == 0) call(training::name<float>, a + 1); \
        else call(training::name<bf16>, a + 1); \
    }
