// What a training step computes between its products: each kernel is one pass where PyTorch makes several.
//
// Tensors are fp32 or bf16, arithmetic is fp32. Rows are independent, or are added up in pieces whose size does
// not depend on the number of threads, so neither do the bits.
#include <algorithm>
#include <vector>

#include "tensors.h"

namespace training {

constexpr int64_t PIECE = 32;  // rows whose sums are added up together
inline int64_t pieces(int64_t rows) { return (rows + PIECE - 1) / PIECE; }

template <typename T>
void norm_forward(const T* x, int64_t stride, const float* weight, T* y, float* r, int64_t rows, int64_t n, float eps) {
#pragma omp parallel for num_threads(threads_for(rows * n))
    for (int64_t row = 0; row < rows; row++) {
        const T* from = x + row * stride;
        T* to = y + row * n;
        vec squares = zero();
        for (int64_t i = 0; i < n; i += LANES) {
            vec a = get(from, i, n);
            squares = fma(a, a, squares);
        }
        r[row] = 1.0f / std::sqrt(sum(squares) / n + eps);
        for (int64_t i = 0; i < n; i += LANES)
            set(to, i, n, mul(mul(get(from, i, n), all(r[row])), get(weight, i, n)));
    }
}

template <typename T>
void norm_backward(const T* grad, const T* x, int64_t stride, const float* weight, const float* r, T* grad_x,
                   float* grad_weight, int64_t rows, int64_t n) {
#pragma omp parallel for num_threads(threads_for(2 * rows * n))
    for (int64_t piece = 0; piece < pieces(rows); piece++) {
        float* sums = grad_weight + piece * n;
        std::memset(sums, 0, n * sizeof(float));
        for (int64_t row = piece * PIECE; row < std::min(rows, (piece + 1) * PIECE); row++) {
            const T *g = grad + row * n, *from = x + row * stride;
            vec scale = all(r[row]), dot = zero();
            for (int64_t i = 0; i < n; i += LANES) {
                vec weighted = mul(get(g, i, n), mul(get(from, i, n), scale));
                set(sums, i, n, add(get(sums, i, n), weighted));
                dot = fma(weighted, get(weight, i, n), dot);
            }
            vec mean = all(sum(dot) / n);
            for (int64_t i = 0; i < n; i += LANES) {
                vec normed = mul(get(from, i, n), scale);
                vec direct = mul(get(g, i, n), get(weight, i, n));
                set(grad_x + row * n, i, n, mul(sub(direct, mul(normed, mean)), scale));
            }
        }
    }
}

// Steps in numbers from row to row of gate and up.
template <typename T>
void swiglu_forward(const T* gate, const T* up, int64_t step, T* out, int64_t rows, int64_t n) {
#pragma omp parallel for num_threads(threads_for(4 * rows * n))
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < n; i += LANES)
            set(out + row * n, i, n, mul(silu(get(gate + row * step, i, n)), get(up + row * step, i, n)));
}

// The derivative of weight * silu(gate) * up. weight has one number for each row and comes with `product` and
// grad_weight, to write; all three may be null. Where gate was cut off at the limit, or up on either side, nothing
// depends on it.
template <typename T>
void swiglu_backward(const T* grad, const T* gate, const T* up, int64_t step, const float* weight, T* grad_gate,
                     T* grad_up, int64_t grad_step, T* product, float* grad_weight, int64_t rows, int64_t n,
                     float limit) {
#pragma omp parallel for num_threads(threads_for(8 * rows * n))
    for (int64_t row = 0; row < rows; row++) {
        const T *g = gate + row * step, *u = up + row * step;
        vec factor = all(weight ? weight[row] : 1.0f), dot = zero();
        for (int64_t i = 0; i < n; i += LANES) {
            vec x = get(g, i, n), other = get(u, i, n), outer = get(grad + row * n, i, n);
            vec s = sigmoid(x), active = mul(x, s), weighted = mul(outer, factor);
            if (weight) {
                vec whole = mul(active, other);
                dot = fma(outer, whole, dot);
                set(product + row * n, i, n, mul(whole, factor));
            }
            vec slope = fma(active, sub(all(1.0f), s), s);  // of silu: s (1 + x (1 - s))
            vec inside = mul(below(other, limit), below(sub(zero(), other), limit));
            set(grad_gate + row * grad_step, i, n, mul(mul(mul(weighted, other), slope), below(x, limit)));
            set(grad_up + row * grad_step, i, n, mul(mul(weighted, active), inside));
        }
        if (weight) grad_weight[row] = sum(dot);
    }
}

template <typename T> float largest_of(const T* x, int64_t n) {
    vec top = all(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) top = max(top, load(x + i));
    float most = largest(top);
    for (; i < n; i++) most = number(x[i]) > most ? number(x[i]) : most;
    return most;
}

inline float sum_of(const float* x, int64_t n) {
    vec total = zero();
    for (int64_t i = 0; i < n; i += LANES) total = add(total, get(x, i, n));
    return sum(total);
}

// Sum of e^(scale x - shift).
template <typename T> float sum_of_exp(const T* x, int64_t n, float scale, float shift) {
    vec first = zero(), second = zero();
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        first = add(first, exp(fma(load(x + i), all(scale), all(-shift))));
        second = add(second, exp(fma(load(x + i + LANES), all(scale), all(-shift))));
    }
    float total = sum(add(first, second));
    for (; i < n; i++) total += std::exp(number(x[i]) * scale - shift);
    return total;
}

template <typename T>
void cross_entropy(T* logits, int64_t rows, int64_t n, const int64_t* targets, int64_t ignore, float* losses,
                   bool replace) {
#pragma omp parallel for num_threads(threads_for(16 * rows * n))
    for (int64_t row = 0; row < rows; row++) {
        T* x = logits + row * n;
        int64_t target = targets[row];
        if (target == ignore) {
            losses[row] = 0;
            if (replace) std::memset(x, 0, n * sizeof(T));
            continue;
        }
        if (target < 0 || target >= n) {  // no token: no number, for whoever looks at the loss
            losses[row] = NAN;
            continue;
        }
        float most = largest_of(x, n);
        float log_sum = most + std::log(sum_of_exp(x, n, 1.0f, most)), wanted = number(x[target]);
        losses[row] = log_sum - wanted;
        if (!replace) continue;
        for (int64_t i = 0; i < n; i += LANES) set(x, i, n, exp(sub(get(x, i, n), all(log_sum))));
        put(x + target, std::exp(wanted - log_sum) - 1);
    }
}

// The keys [first, last) of a block that a query sees: those from the start of its sequence up to its own.
struct Seen {
    int64_t first, last;
    Seen(const int32_t* start, int64_t query, int64_t first_query, int64_t first_key)
        : first(std::max(start[query] - first_key, int64_t(0))), last(first_query + query - first_key + 1) {}
};

// Softmax of scale * logits (heads, queries, groups, keys) in place, over the keys that are seen; the others become
// 0. start (queries): where the sequence of each begins. Numbers in the list: first_query and first_key are the
// block's. largest (heads, groups), unless null, becomes the larger of it and of the scaled logits.
template <typename T>
void softmax_forward(T* logits, int64_t heads, int64_t queries, int64_t groups, int64_t keys, const int32_t* start,
                     int64_t first_query, int64_t first_key, float* largest, float scale) {
#pragma omp parallel num_threads(threads_for(16 * heads * queries * groups * keys))
    {
        std::vector<float> powers(keys + LANES);
#pragma omp for
        for (int64_t head = 0; head < heads; head++)
            for (int64_t row = 0; row < queries * groups; row++) {
                T* x = logits + (head * queries * groups + row) * keys;
                Seen seen(start, row / groups, first_query, first_key);
                int64_t n = seen.last - seen.first;
                std::memset(x, 0, seen.first * sizeof(T));
                std::memset(x + seen.last, 0, (keys - seen.last) * sizeof(T));
                x += seen.first;
                float most = largest_of(x, n) * scale, *e = powers.data();
                if (largest) {
                    float* known = largest + head * groups + row % groups;
                    *known = *known > most ? *known : most;
                }
                for (int64_t i = 0; i < n; i += LANES)
                    store(e + i, exp(fma(get(x, i, n), all(scale), all(-most))));
                vec factor = all(1 / sum_of(e, n));
                for (int64_t i = 0; i < n; i += LANES) set(x, i, n, mul(load(e + i), factor));
            }
    }
}

// scale * p * (grad - sum of p * grad) in the place of grad; p and grad (heads, queries, groups, keys).
template <typename T>
void softmax_backward(T* grad, const T* p, int64_t heads, int64_t queries, int64_t groups, int64_t keys,
                      const int32_t* start, int64_t first_query, int64_t first_key, float scale) {
#pragma omp parallel for num_threads(threads_for(4 * heads * queries * groups * keys))
    for (int64_t row = 0; row < heads * queries * groups; row++) {
        Seen seen(start, row / groups % queries, first_query, first_key);
        int64_t n = seen.last - seen.first;
        T* g = grad + row * keys;
        const T* probability = p + row * keys + seen.first;
        std::memset(g, 0, seen.first * sizeof(T));
        std::memset(g + seen.last, 0, (keys - seen.last) * sizeof(T));
        g += seen.first;
        vec sums[4] = {zero(), zero(), zero(), zero()};
        int64_t i = 0;
        for (; i + 4 * LANES <= n; i += 4 * LANES)
            for (int j = 0; j < 4; j++)
                sums[j] = fma(load(g + i + j * LANES), load(probability + i + j * LANES), sums[j]);
        for (; i < n; i += LANES) sums[0] = fma(get(g, i, n), get(probability, i, n), sums[0]);
        vec mean = all(sum(add(add(sums[0], sums[1]), add(sums[2], sums[3]))));
        for (i = 0; i + LANES <= n; i += LANES)
            store(g + i, mul(mul(sub(load(g + i), mean), all(scale)), load(probability + i)));
        if (i < n) set(g, i, n, mul(mul(sub(get(g, i, n), mean), all(scale)), get(probability, i, n)));
    }
}

// Pairs of numbers `other` apart, `step` from pair to pair, turned: known here, so that the compiler makes vectors.
template <typename T>
inline void turn_pairs(const T* from, const float* turn, float direction, T* to, int64_t pairs, int64_t step,
                       int64_t other) {
    for (int64_t pair = 0; pair < pairs; pair++) {
        float cos = turn[pair * 2], sin = direction * turn[pair * 2 + 1];
        float a = number(from[pair * step]), b = number(from[pair * step + other]);
        put(to + pair * step, a * cos - b * sin);
        put(to + pair * step + other, a * sin + b * cos);
    }
}

// out[n][h] = x[n][h] turned by turn[n], pairs of cos and sin. kind: 1 for interleaved channels, plus 2 to turn
// back. Steps in numbers from token to token and from head to head, here and below.
template <typename T>
void rotate(const T* x, int64_t by_token, int64_t by_head, const float* turn, T* out, int64_t tokens, int64_t heads,
            int64_t pairs, int64_t kind) {
    float direction = kind & 2 ? -1.0f : 1.0f;
#pragma omp parallel for num_threads(threads_for(8 * tokens * heads * pairs))
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t head = 0; head < heads; head++) {
            const T* __restrict from = x + token * by_token + head * by_head;
            T* __restrict to = out + (token * heads + head) * 2 * pairs;
            const float* own = turn + token * pairs * 2;
            if (kind & 1) turn_pairs(from, own, direction, to, pairs, 2, 1);
            else turn_pairs(from, own, direction, to, pairs, 1, pairs);
        }
}

// out[h][n] = content[n][h], then rotary[n][h].
template <typename T>
void join_heads(const T* content, int64_t by_token, int64_t by_head, const T* rotary, int64_t rotary_by_token,
                int64_t rotary_by_head, T* out, int64_t tokens, int64_t heads, int64_t n, int64_t n_rotary) {
#pragma omp parallel for num_threads(threads_for(tokens * heads * (n + n_rotary)))
    for (int64_t head = 0; head < heads; head++)
        for (int64_t token = 0; token < tokens; token++) {
            T* to = out + (head * tokens + token) * (n + n_rotary);
            std::memcpy(to, content + token * by_token + head * by_head, n * sizeof(T));
            std::memcpy(to + n, rotary + token * rotary_by_token + head * rotary_by_head, n_rotary * sizeof(T));
        }
}

// The other way; where all heads share the rotary part (n, tokens after each other), it becomes the sum of theirs.
template <typename T>
void split_heads(const T* joined, T* content, int64_t by_token, int64_t by_head, T* rotary, bool shared, int64_t tokens,
                 int64_t heads, int64_t n, int64_t n_rotary) {
#pragma omp parallel for num_threads(threads_for(tokens * heads * (n + n_rotary)))
    for (int64_t token = 0; token < tokens; token++) {
        for (int64_t head = 0; head < heads; head++) {
            const T* from = joined + (head * tokens + token) * (n + n_rotary);
            std::memcpy(content + token * by_token + head * by_head, from, n * sizeof(T));
            if (!shared) std::memcpy(rotary + (token * heads + head) * n_rotary, from + n, n_rotary * sizeof(T));
        }
        for (int64_t i = 0; shared && i < n_rotary; i += LANES) {
            vec total = zero();
            for (int64_t head = 0; head < heads; head++)
                total = add(total, get(joined + (head * tokens + token) * (n + n_rotary) + n, i, n_rotary));
            set(rotary + token * n_rotary, i, n_rotary, total);
        }
    }
}

}  // namespace training

KERNEL(norm_forward)
KERNEL(norm_backward)
KERNEL(swiglu_forward)
KERNEL(swiglu_backward)
KERNEL(cross_entropy)
KERNEL(softmax_forward)
KERNEL(softmax_backward)
KERNEL(rotate)
KERNEL(join_heads)
KERNEL(split_heads)
