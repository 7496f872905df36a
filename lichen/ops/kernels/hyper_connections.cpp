// Hyper-connections (`lichen.ops.hyper_connections`), each direction of each half in one pass over the streams: what a
// sub-layer reads of them, and what they are after it.
//
// A token's small matrices are computed LANES tokens at a time, a number of each of them side by side. Gradients of
// weights are added up in PARTS, whose sizes do not depend on the number of threads, so neither do the bits.
#include <algorithm>
#include <vector>

#include "tensors.h"

namespace training {

constexpr int64_t PARTS = 8;

// to[t * outputs + o] = x_t . fn_o for `count` tokens and all outputs, four by four; width numbers each.
template <typename T>
void dots(const T* x, int64_t count, const float* fn, int64_t outputs, int64_t width, float* to) {
    for (int64_t token = 0; token < count; token += 4)
        for (int64_t output = 0; output < outputs; output += 4) {
            const T* rows[4];
            const float* weights[4];
            for (int64_t i = 0; i < 4; i++) {  // what lies after the end is computed from the last, for nobody
                rows[i] = x + std::min(token + i, count - 1) * width;
                weights[i] = fn + std::min(output + i, outputs - 1) * width;
            }
            vec sums[4][4];
            for (auto& row : sums)
                for (vec& sum : row) sum = zero();
            for (int64_t i = 0; i < width; i += LANES) {
                vec right[4];
                for (int o = 0; o < 4; o++) right[o] = get(weights[o], i, width);
                for (int t = 0; t < 4; t++) {
                    vec left = get(rows[t], i, width);
                    for (int o = 0; o < 4; o++) sums[t][o] = fma(left, right[o], sums[t][o]);
                }
            }
            for (int64_t t = 0; t < std::min(count - token, int64_t(4)); t++)
                for (int64_t o = 0; o < std::min(outputs - output, int64_t(4)); o++)
                    to[(token + t) * outputs + output + o] = sum(sums[t][o]);
        }
}

template <typename A, typename B> float product(const A* a, const B* b, int64_t n) {
    vec total = zero();
    for (int64_t i = 0; i < n; i += LANES) total = fma(get(a, i, n), get(b, i, n), total);
    return sum(total);
}

// Divides matrices (streams, streams) by the sums of their rows or of their columns, and keeps one over these.
inline void divide(float* x, int64_t streams, bool rows, float eps, float* inverses) {
    int64_t along = (rows ? 1 : streams) * LANES, across = (rows ? streams : 1) * LANES;
    for (int64_t line = 0; line < streams; line++) {
        float* first = x + line * across;
        vec total = all(eps);
        for (int64_t i = 0; i < streams; i++) total = add(total, load(first + i * along));
        vec inverse = div(all(1.0f), total);
        store(inverses + line * LANES, inverse);
        for (int64_t i = 0; i < streams; i++) store(first + i * along, mul(load(first + i * along), inverse));
    }
}

// Of y = divide(x) from dy: dx = (dy - sum(dy y)) / sum(x), in the place of dy.
inline void divide_backward(float* grad, const float* y, int64_t streams, bool rows, const float* inverses) {
    int64_t along = (rows ? 1 : streams) * LANES, across = (rows ? streams : 1) * LANES;
    for (int64_t line = 0; line < streams; line++) {
        float* g = grad + line * across;
        const float* values = y + line * across;
        vec total = zero();
        for (int64_t i = 0; i < streams; i++) total = fma(load(g + i * along), load(values + i * along), total);
        for (int64_t i = 0; i < streams; i++)
            store(g + i * along, mul(sub(load(g + i * along), total), load(inverses + line * LANES)));
    }
}

// `sinkhorn_reference` of LANES matrices, and its derivative; `kept` has what every step made.
struct Sinkhorn {
    int64_t streams, size, divisions;
    float eps;
    std::vector<float> softmax, kept, inverses;

    Sinkhorn(int64_t streams, int64_t iterations, float eps)
        : streams(streams), size(streams * streams * LANES), divisions(2 * iterations - 1), eps(eps), softmax(size),
          kept(divisions * size), inverses(divisions * streams * LANES) {}

    float* inverse(int64_t number) { return inverses.data() + number * streams * LANES; }

    const float* forward(const float* logits) {
        for (int64_t row = 0; row < streams; row++) {
            const float* from = logits + row * streams * LANES;
            float* to = softmax.data() + row * streams * LANES;
            vec most = load(from), total = zero();
            for (int64_t i = 1; i < streams; i++) most = max(most, load(from + i * LANES));
            for (int64_t i = 0; i < streams; i++) {
                vec e = exp(sub(load(from + i * LANES), most));
                store(to + i * LANES, e);
                total = add(total, e);
            }
            for (int64_t i = 0; i < streams; i++) store(to + i * LANES, div(load(to + i * LANES), total));
        }
        float* x = kept.data();
        for (int64_t i = 0; i < size; i += LANES) store(x + i, add(load(softmax.data() + i), all(eps)));
        divide(x, streams, false, eps, inverse(0));
        for (int64_t number = 1; number < divisions; number++, x += size) {
            std::memcpy(x + size, x, size * sizeof(float));
            divide(x + size, streams, number % 2, eps, inverse(number));
        }
        return x;
    }

    void backward(float* grad) {
        for (int64_t number = divisions - 1; number >= 0; number--)
            divide_backward(grad, kept.data() + number * size, streams, number % 2, inverse(number));
        for (int64_t row = 0; row < streams; row++) {
            float *g = grad + row * streams * LANES, *p = softmax.data() + row * streams * LANES;
            vec total = zero();
            for (int64_t i = 0; i < streams; i++) total = fma(load(g + i * LANES), load(p + i * LANES), total);
            for (int64_t i = 0; i < streams; i++)
                store(g + i * LANES, mul(load(p + i * LANES), sub(load(g + i * LANES), total)));
        }
    }
};

// LANES tokens' numbers (count, width) side by side, and back.
inline void to_lanes(const float* from, int64_t count, int64_t width, float* to) {
    for (int64_t i = 0; i < width; i++)
        for (int64_t t = 0; t < LANES; t++) to[i * LANES + t] = t < count ? from[t * width + i] : 0;
}
inline void from_lanes(const float* from, int64_t count, int64_t width, float* to, int64_t step) {
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < width; i++) to[t * step + i] = from[i * LANES + t];
}

// Which of the three scales multiplies an output.
inline int64_t scale_of(int64_t output, int64_t streams) { return std::min(output / streams, int64_t(2)); }

// read, write and mix before sigmoid and Sinkhorn: scale u + base, of LANES tokens.
inline void logits_of(const float* u, const float* base, const float* scale, int64_t count, int64_t streams,
                      float* logits) {
    int64_t outputs = (2 + streams) * streams;
    to_lanes(u, count, outputs, logits);
    for (int64_t o = 0; o < outputs; o++)
        store(logits + o * LANES, fma(load(logits + o * LANES), all(scale[scale_of(o, streams)]), all(base[o])));
}

inline int64_t part_size(int64_t tokens) { return (tokens + PARTS * LANES - 1) / (PARTS * LANES) * LANES; }

// x (tokens, streams, n), fn (outputs, streams n) -> joined (tokens, n), read and write (tokens, streams), mix (tokens,
// streams, streams); and for the derivative u (tokens, outputs) = fn x r and r (tokens), one over the root mean square.
template <typename T>
void streams_read(const T* x, const float* fn, const float* base, const float* scale, T* joined, float* read,
                  float* write, float* mix, float* u, float* r, int64_t tokens, int64_t streams, int64_t n, int64_t iterations,
                  float eps, float norm_eps) {
    int64_t outputs = (2 + streams) * streams, width = streams * n;
#pragma omp parallel num_threads(threads_for(tokens * width * outputs))
    {
        Sinkhorn sinkhorn(streams, iterations, eps);
        std::vector<float> logits(outputs * LANES);
#pragma omp for
        for (int64_t first = 0; first < tokens; first += LANES) {
            int64_t count = std::min(tokens - first, int64_t(LANES));
            const T* own = x + first * width;
            float* own_u = u + first * outputs;
            dots(own, count, fn, outputs, width, own_u);
            for (int64_t t = 0; t < count; t++) {
                r[first + t] = 1.0f / std::sqrt(product(own + t * width, own + t * width, width) / width + norm_eps);
                for (int64_t o = 0; o < outputs; o++) own_u[t * outputs + o] *= r[first + t];
            }
            logits_of(own_u, base, scale, count, streams, logits.data());
            float* writes = logits.data() + streams * LANES;
            for (int64_t i = 0; i < streams * LANES; i += LANES) {
                store(logits.data() + i, add(sigmoid(load(logits.data() + i)), all(eps)));
                store(writes + i, mul(all(2.0f), sigmoid(load(writes + i))));
            }
            from_lanes(logits.data(), count, streams, read + first * streams, streams);
            from_lanes(writes, count, streams, write + first * streams, streams);
            const float* mixed = sinkhorn.forward(writes + streams * LANES);
            from_lanes(mixed, count, streams * streams, mix + first * streams * streams, streams * streams);
            for (int64_t t = 0; t < count; t++)
                for (int64_t i = 0; i < n; i += LANES) {
                    vec total = zero();
                    for (int64_t s = 0; s < streams; s++)
                        total = fma(all(logits[s * LANES + t]), get(own + t * width + s * n, i, n), total);
                    set(joined + (first + t) * n, i, n, total);
                }
        }
    }
}

// grad_x += factor x + sum over outputs of slopes fn, and grad_fn += slopes x, of `count` tokens. Columns of grad_fn are
// added up for eight outputs at a time, those of grad_x for four tokens.
template <typename T>
void outputs_backward(const T* x, const float* fn, const float* slopes, const float* factors, int64_t count,
                      int64_t outputs, int64_t width, T* grad_x, float* grad_fn) {
    for (int64_t token = 0; token < count; token += 4) {
        int64_t some = std::min(count - token, int64_t(4));
        int64_t rows[4];
        for (int64_t t = 0; t < 4; t++) rows[t] = token + std::min(t, some - 1);
        for (int64_t i = 0; i < width; i += LANES) {
            vec sums[4];
            for (int t = 0; t < 4; t++)
                sums[t] = fma(all(factors[rows[t]]), get(x + rows[t] * width, i, width), get(grad_x + rows[t] * width, i, width));
            for (int64_t o = 0; o < outputs; o++) {
                vec weights = get(fn + o * width, i, width);
                for (int t = 0; t < 4; t++) sums[t] = fma(all(slopes[rows[t] * outputs + o]), weights, sums[t]);
            }
            for (int64_t t = 0; t < some; t++) set(grad_x + rows[t] * width, i, width, sums[t]);
        }
    }
    for (int64_t output = 0; output < outputs; output += 8) {
        int64_t some = std::min(outputs - output, int64_t(8));
        for (int64_t i = 0; i < width; i += LANES) {
            vec sums[8];
            for (int64_t o = 0; o < 8; o++) sums[o] = get(grad_fn + (output + std::min(o, some - 1)) * width, i, width);
            for (int64_t t = 0; t < count; t++) {
                vec values = get(x + t * width, i, width);
                const float* slope = slopes + t * outputs + output;
                for (int64_t o = 0; o < 8; o++) sums[o] = fma(all(slope[std::min(o, some - 1)]), values, sums[o]);
            }
            for (int64_t o = 0; o < some; o++) set(grad_fn + (output + o) * width, i, width, sums[o]);
        }
    }
}

// From the gradients of joined, write and mix those of the logits (tokens, outputs), of x, and of fn (PARTS, outputs,
// streams n), to be added up.
template <typename T>
void streams_read_backward(const T* grad_joined, const float* grad_write, const float* grad_mix, const T* x,
                           const float* fn, const float* base, const float* scale, const float* u, const float* r,
                           float* grad_logits, T* grad_x, float* grad_fn, int64_t tokens, int64_t streams, int64_t n,
                           int64_t iterations, float eps) {
    int64_t outputs = (2 + streams) * streams, width = streams * n, squares = streams * streams;
#pragma omp parallel num_threads(threads_for(2 * tokens * width * outputs))
    {
        Sinkhorn sinkhorn(streams, iterations, eps);
        std::vector<float> logits(outputs * LANES), grads(outputs * LANES), outer(LANES * streams);
        std::vector<float> slopes(LANES * outputs), factors(LANES);
#pragma omp for
        for (int64_t part = 0; part < PARTS; part++) {
            float* sums = grad_fn + part * outputs * width;
            std::memset(sums, 0, outputs * width * sizeof(float));
            int64_t size = part_size(tokens), end = std::min(tokens, (part + 1) * size);
            for (int64_t first = part * size; first < end; first += LANES) {
                int64_t count = std::min(end - first, int64_t(LANES));
                const T *own = x + first * width, *grad = grad_joined + first * n;
                for (int64_t t = 0; t < count; t++)
                    for (int64_t s = 0; s < streams; s++)
                        outer[t * streams + s] = product(grad + t * n, own + t * width + s * n, n);
                logits_of(u + first * outputs, base, scale, count, streams, logits.data());
                float *reads = logits.data(), *writes = reads + streams * LANES, *mixes = writes + streams * LANES;
                to_lanes(outer.data(), count, streams, grads.data());
                to_lanes(grad_write + first * streams, count, streams, grads.data() + streams * LANES);
                to_lanes(grad_mix + first * squares, count, squares, grads.data() + 2 * streams * LANES);
                for (int64_t i = 0; i < 2 * streams * LANES; i += LANES) {
                    vec s = sigmoid(load(reads + i)), slope = mul(s, sub(all(1.0f), s));
                    store(reads + i, add(s, all(eps)));
                    store(grads.data() + i, mul(mul(load(grads.data() + i), all(i < streams * LANES ? 1.0f : 2.0f)), slope));
                }
                sinkhorn.forward(mixes);
                sinkhorn.backward(grads.data() + 2 * streams * LANES);
                from_lanes(grads.data(), count, outputs, grad_logits + first * outputs, outputs);
                for (int64_t t = 0; t < count; t++) {
                    const float *own_u = u + (first + t) * outputs, *g = grad_logits + (first + t) * outputs;
                    float inverse = r[first + t], along = 0;
                    for (int64_t o = 0; o < outputs; o++) {
                        float scaled = g[o] * scale[scale_of(o, streams)];
                        slopes[t * outputs + o] = scaled * inverse;
                        along += scaled * own_u[o];
                    }
                    factors[t] = -along * inverse * inverse / width;
                    for (int64_t s = 0; s < streams; s++)
                        for (int64_t i = 0; i < n; i += LANES)
                            set(grad_x + (first + t) * width + s * n, i, n,
                                mul(all(reads[s * LANES + t]), get(grad + t * n, i, n)));
                }
                outputs_backward(own, fn, slopes.data(), factors.data(), count, outputs, width, grad_x + first * width,
                                 sums);
            }
        }
    }
}

// out_k = write_k y + sum over j of mix_jk x_j; x and out (tokens, streams, n), y (tokens, n).
template <typename T>
void streams_mix(const T* x, const T* y, const float* write, const float* mix, T* out, int64_t tokens, int64_t streams,
                 int64_t n) {
#pragma omp parallel for num_threads(threads_for(tokens * streams * streams * n))
    for (int64_t token = 0; token < tokens; token++) {
        const T *own = x + token * streams * n, *added = y + token * n;
        const float *writes = write + token * streams, *mixes = mix + token * streams * streams;
        for (int64_t i = 0; i < n; i += LANES)
            for (int64_t k = 0; k < streams; k++) {
                vec total = mul(all(writes[k]), get(added, i, n));
                for (int64_t j = 0; j < streams; j++)
                    total = fma(all(mixes[j * streams + k]), get(own + j * n, i, n), total);
                set(out + (token * streams + k) * n, i, n, total);
            }
    }
}

template <typename T>
void streams_mix_backward(const T* grad, const T* x, const T* y, const float* write, const float* mix, T* grad_x,
                          T* grad_y, float* grad_write, float* grad_mix, int64_t tokens, int64_t streams, int64_t n) {
#pragma omp parallel for num_threads(threads_for(2 * tokens * streams * streams * n))
    for (int64_t token = 0; token < tokens; token++) {
        const T *own = x + token * streams * n, *added = y + token * n, *g = grad + token * streams * n;
        int64_t vector = token * streams, matrix = vector * streams;
        for (int64_t k = 0; k < streams; k++) {
            grad_write[vector + k] = product(g + k * n, added, n);
            for (int64_t j = 0; j < streams; j++)
                grad_mix[matrix + j * streams + k] = product(own + j * n, g + k * n, n);
        }
        for (int64_t i = 0; i < n; i += LANES) {
            vec total = zero();
            for (int64_t k = 0; k < streams; k++) total = fma(all(write[vector + k]), get(g + k * n, i, n), total);
            set(grad_y + token * n, i, n, total);
            for (int64_t j = 0; j < streams; j++) {
                vec mixed = zero();
                for (int64_t k = 0; k < streams; k++)
                    mixed = fma(all(mix[matrix + j * streams + k]), get(g + k * n, i, n), mixed);
                set(grad_x + (vector + j) * n, i, n, mixed);
            }
        }
    }
}

}  // namespace training

KERNEL(streams_read)
KERNEL(streams_read_backward)
KERNEL(streams_mix)
KERNEL(streams_mix_backward)
