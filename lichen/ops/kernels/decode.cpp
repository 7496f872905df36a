// What a pass over a few tokens computes, in fp32, from weights in any of their formats. One function for each
// operation of `lichen/ops`; what the arguments are is said there.
#include <algorithm>
#include <vector>

#include "integers.h"
#include "weights.h"

// Rows of x as a matrix in some format wants to be multiplied by them.
template <typename W> struct Input {
    const float* x;
    int64_t x_step, width;
    Input(const float* x, int64_t x_step, int64_t, int64_t width) : x(x), x_step(x_step), width(width) {}
    void products(const W& w, int64_t begin, int64_t end, int64_t first, int64_t count, float* y, int64_t y_step) const {
        ::products(w, begin, end, width, x + first * x_step, x_step, count, y, y_step);
    }
};
#if defined(__AVX2__)
template <> struct Input<Int4> {
    Rounded x;
    Input(const float* x, int64_t x_step, int64_t count, int64_t width) : x(x, x_step, count, width) {}
    void products(const Int4& w, int64_t begin, int64_t end, int64_t first, int64_t count, float* y, int64_t y_step) const {
        ::products(w, begin, end, x, first, count, y, y_step);
    }
};
#endif

// y (tokens, rows) = x (tokens, width) w^T + bias
extern "C" void linear(const Argument* a) {
    const float* x = at<float>(a[0]);
    int64_t x_step = a[1].whole, tokens = a[2].whole, rows = a[6].whole, width = a[7].whole;
    const float* bias = at<float>(a[8]);
    float* y = at<float>(a[9]);
    with_weights(a[3].whole, at<void>(a[4]), at<void>(a[5]), width, [&](auto w) {
        constexpr int64_t BLOCK = 64;
        int64_t blocks = (rows + BLOCK - 1) / BLOCK;
        int threads = threads_for(rows * width * tokens);
        Input<decltype(w)> input(x, x_step, tokens, width);
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t begin = b * BLOCK, end = std::min(begin + BLOCK, rows);
            input.products(w, begin, end, 0, tokens, y + begin, rows);
            if (bias)
                for (int64_t n = 0; n < tokens; n++)
                    for (int64_t r = begin; r < end; r++) y[n * rows + r] += bias[r];
        }
    });
}

// out (tokens, width) = rows of the table in its format
extern "C" void embed(const Argument* a) {
    const int64_t* tokens = at<int64_t>(a[0]);
    int64_t count = a[1].whole, rows = a[4].whole, width = a[5].whole;
    float* out = at<float>(a[6]);
    with_rows(a[2].whole, at<void>(a[3]), width, [&](auto table) {
        for (int64_t n = 0; n < count; n++) {
            bool there = tokens[n] >= 0 && tokens[n] < rows;  // else the model's output will be no number
            for (int64_t k = 0; k < width; k++) out[n * width + k] = there ? table.value(tokens[n], k) : NAN;
        }
    });
}

// out (tokens, pairs) complex: how far every pair turns
extern "C" void turns(const Argument* a) {
    const int64_t* positions = at<int64_t>(a[0]);
    const float* frequencies = at<float>(a[1]);
    float* out = at<float>(a[2]);
    int64_t count = a[3].whole, pairs = a[4].whole;
    float length = float(a[5].real);
    for (int64_t n = 0; n < count; n++)
        for (int64_t i = 0; i < pairs; i++, out += 2) {
            float angle = float(positions[n]) * frequencies[i];
            out[0] = length * std::cos(angle);
            out[1] = length * std::sin(angle);
        }
}

// data[slot][position][column...] = entries of every token, in the format of the storage
extern "C" void keep(const Argument* a) {
    const float* entries = at<float>(a[0]);
    int64_t step = a[1].whole, tokens = a[2].whole, width = a[3].whole, capacity = a[6].whole, whole = a[7].whole;
    const int64_t *slots = at<int64_t>(a[8]), *positions = at<int64_t>(a[9]);
    auto write = [&](auto* data) {
        for (int64_t n = 0; n < tokens; n++) {
            auto* to = data + (slots[n] * capacity + positions[n]) * whole;
            for (int64_t k = 0; k < width; k++) put(to + k, entries[n * step + k]);
        }
    };
    if (a[4].whole == 0) write(at<float>(a[5]));
    else if (a[4].whole == 1) write(at<bf16>(a[5]));
    else write(at<fp16>(a[5]));
}

// Numbers from one row of logits to the next: whole vectors, as softmax wants them.
static int64_t room_for(int64_t length) { return (length + LANES - 1) / LANES * LANES; }

// out (tokens, heads, value): every token's queries to the stored keys and values up to its position.
extern "C" void attend(const Argument* a) {
    const float* q = at<float>(a[0]);  // (tokens, heads, key width)
    int64_t tokens = a[1].whole, heads = a[2].whole, key_heads = a[3].whole, keys = a[4].whole, values = a[5].whole;
    int64_t capacity = a[8].whole, whole = key_heads * (keys + values), group = heads / key_heads;
    const int64_t *slots = at<int64_t>(a[9]), *positions = at<int64_t>(a[10]);
    float* out = at<float>(a[11]);
    float scale = float(a[12].real);
    with_rows(a[6].whole, at<void>(a[7]), whole, [&](auto stored) {
        int64_t seen = 0;
        for (int64_t n = 0; n < tokens; n++) seen += positions[n] + 1;
        int threads = threads_for(2 * seen * heads * keys);
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
        for (int64_t n = 0; n < tokens; n++)
            for (int64_t h = 0; h < key_heads; h++) {
                static thread_local std::vector<float> logits;
                int64_t length = positions[n] + 1, room = room_for(length);
                logits.resize(group * room);
                auto own = stored;
                own.data += slots[n] * capacity * whole + h * keys;
                const float* queries = q + (n * heads + h * group) * keys;
                products(own, 0, length, keys, queries, keys, group, logits.data(), room);
                for (int64_t g = 0; g < group; g++) softmax(logits.data() + g * room, length, scale);
                own.data += key_heads * keys + h * (values - keys);
                mix(own, 0, length, 0, values, logits.data(), room, group, out + (n * heads + h * group) * values, values);
            }
    });
}

// Attention by latents, absorbed: the content of a query becomes one for latents by W_uk, and the mixed latents
// become values by W_uv. out (tokens, heads, value).
extern "C" void attend_latents(const Argument* a) {
    const float *content = at<float>(a[0]), *rotary = at<float>(a[2]);
    int64_t content_step = a[1].whole, content_by_head = a[15].whole;
    int64_t tokens = a[3].whole, heads = a[4].whole, content_width = a[5].whole, rotary_width = a[6].whole;
    int64_t latent = a[7].whole, values = a[8].whole, whole = latent + rotary_width;
    int64_t capacity = a[13].whole;
    const int64_t *slots = at<int64_t>(a[14]), *positions = at<int64_t>(a[16]);
    float* out = at<float>(a[17]);
    float scale = float(a[18].real);
    int64_t pairs = tokens * heads;
    std::vector<float> queries(pairs * whole), mixed(pairs * latent);
    with_rows(a[9].whole, at<void>(a[10]), latent, [&](auto up) {
        int threads = threads_for(pairs * content_width * latent);
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t n = 0; n < tokens; n++) {
                float* query = queries.data() + (n * heads + h) * whole;
                const float* from = content + n * content_step + h * content_by_head;
                mix(up, h * (content_width + values), content_width, 0, latent, from, 0, 1, query, 0);
                std::copy_n(rotary + (n * heads + h) * rotary_width, rotary_width, query + latent);
            }
    });
    with_rows(a[11].whole, at<void>(a[12]), whole, [&](auto stored) {
        int64_t seen = 0;
        for (int64_t n = 0; n < tokens; n++) seen += positions[n] + 1;
        constexpr int64_t HEADS = 8;  // that share a pass over the stored latents
        int64_t groups = (heads + HEADS - 1) / HEADS;
        int threads = threads_for(2 * seen * heads * whole);
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
        for (int64_t n = 0; n < tokens; n++)
            for (int64_t g = 0; g < groups; g++) {
                static thread_local std::vector<float> logits;
                int64_t length = positions[n] + 1, first = g * HEADS, count = std::min(HEADS, heads - first);
                int64_t room = room_for(length);
                logits.resize(count * room);
                auto own = stored;
                own.data += slots[n] * capacity * whole;
                products(own, 0, length, whole, queries.data() + (n * heads + first) * whole, whole, count, logits.data(), room);
                for (int64_t h = 0; h < count; h++) softmax(logits.data() + h * room, length, scale);
                mix(own, 0, length, 0, latent, logits.data(), room, count, mixed.data() + (n * heads + first) * latent, latent);
            }
    });
    with_rows(a[9].whole, at<void>(a[10]), latent, [&](auto up) {
        int threads = threads_for(pairs * values * latent);
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (int64_t h = 0; h < heads; h++) {
            int64_t begin = h * (content_width + values) + content_width;
            products(up, begin, begin + values, latent, mixed.data() + h * latent, heads * latent, tokens, out + h * values, heads * values);
        }
    });
}

static float softplus(float x) { return std::max(x, 0.0f) + std::log1p(std::exp(-std::abs(x))); }

// Which experts a token goes to, and with what weight, as `lichen.nn.router` says.
extern "C" void choose_experts(const Argument* a) {
    const float *logits = at<float>(a[0]), *bias = at<float>(a[1]);
    int64_t tokens = a[2].whole, experts = a[3].whole, chosen = a[4].whole, groups = a[5].whole, kept = a[6].whole;
    int64_t scoring = a[7].whole;  // 0 softmax, 1 sigmoid, 2 sqrtsoftplus
    bool normalise = a[8].whole;
    float factor = float(a[9].real);
    int64_t* ids = at<int64_t>(a[10]);
    float* weights = at<float>(a[11]);
    std::vector<float> scores(experts), biased(experts), best(groups);
    std::vector<int64_t> order(std::max(experts, groups));
    int64_t size = experts / groups;
    for (int64_t n = 0; n < tokens; n++, logits += experts, ids += chosen, weights += chosen) {
        float most = *std::max_element(logits, logits + experts), total = 0;
        for (int64_t e = 0; e < experts; e++)
            total += scores[e] = scoring == 0   ? std::exp(logits[e] - most)
                                 : scoring == 1 ? 1 / (1 + std::exp(-logits[e]))
                                                : std::sqrt(softplus(logits[e]));
        for (int64_t e = 0; e < experts; e++) {
            if (scoring == 0) scores[e] /= total;
            biased[e] = bias ? scores[e] + bias[e] : scores[e];
        }
        auto greater = [](const std::vector<float>& of) {
            return [&of](int64_t i, int64_t j) { return of[i] > of[j] || (of[i] == of[j] && i < j); };
        };
        if (kept < groups) {
            for (int64_t g = 0; g < groups; g++) {
                float first = -INFINITY, second = -INFINITY;
                for (int64_t e = g * size; e < (g + 1) * size; e++) {
                    if (biased[e] > first) { second = first; first = biased[e]; }
                    else second = std::max(second, biased[e]);
                }
                best[g] = first + second;
                order[g] = g;
            }
            std::partial_sort(order.begin(), order.begin() + kept, order.begin() + groups, greater(best));
            std::vector<char> dropped(groups, 1);
            for (int64_t g = 0; g < kept; g++) dropped[order[g]] = 0;
            for (int64_t e = 0; e < experts; e++)
                if (dropped[e / size]) biased[e] = -INFINITY;
        }
        for (int64_t e = 0; e < experts; e++) order[e] = e;
        std::partial_sort(order.begin(), order.begin() + chosen, order.begin() + experts, greater(biased));
        float share = 0;
        for (int64_t i = 0; i < chosen; i++) share += scores[order[i]];
        for (int64_t i = 0; i < chosen; i++) {
            ids[i] = order[i];
            weights[i] = scores[order[i]] / (normalise ? share + 1e-20f : 1) * factor;
        }
    }
}

// silu(gate) * up, gate cut off above the limit and up beyond it on both sides
static void gate(const float* gate_up, float* out, int64_t width, float limit) {
    int64_t k = 0;
    vec above = all(limit), below = all(-limit);
    for (; k + LANES <= width; k += LANES) {
        vec up = max(below, min(above, load(gate_up + width + k)));  // in this order what is no number stays
        store(out + k, mul(silu(min(above, load(gate_up + k))), up));
    }
    for (; k < width; k++) {
        float x = std::min(gate_up[k], limit), up = std::max(std::min(gate_up[width + k], limit), -limit);
        out[k] = x / (1 + std::exp(-x)) * up;
    }
}

extern "C" void plus(const Argument* a) {
    const float *x = at<float>(a[0]), *y = at<float>(a[1]);
    float* out = at<float>(a[2]);
    for (int64_t k = 0, count = a[3].whole; k < count; k++) out[k] = x[k] + y[k];
}

// out (tokens, hidden) = sum over a token's experts of weight * down(silu(gate x) * up x). Every expert is read
// once, for the tokens that chose it; a token's experts are added in the order of their numbers.
extern "C" void experts(const Argument* a) {
    const float* x = at<float>(a[0]);
    int64_t tokens = a[1].whole, hidden = a[2].whole, chosen = a[5].whole, inner = a[12].whole;
    const int64_t* ids = at<int64_t>(a[3]);
    const float* weights = at<float>(a[4]);
    float* out = at<float>(a[13]);
    struct Copy { int64_t expert, token; float weight; };
    std::vector<Copy> copies;
    for (int64_t n = 0; n < tokens; n++)
        for (int64_t i = 0; i < chosen; i++) copies.push_back({ids[n * chosen + i], n, weights[n * chosen + i]});
    std::stable_sort(copies.begin(), copies.end(), [](auto& p, auto& q) { return p.expert < q.expert; });
    std::vector<int64_t> starts;  // where a new expert's copies begin
    for (size_t i = 0; i < copies.size(); i++)
        if (!i || copies[i].expert != copies[i - 1].expert) starts.push_back(i);
    int64_t used = starts.size(), total = copies.size();
    starts.push_back(total);
    std::vector<float> rows(total * hidden), gate_up(total * 2 * inner), active(total * inner), done(total * hidden);
    for (int64_t i = 0; i < total; i++) std::copy_n(x + copies[i].token * hidden, hidden, rows.data() + i * hidden);
    constexpr int64_t BLOCK = 64;
    auto each = [&](auto w, int64_t n_rows, int64_t width, const float* from, float* to) {
        int64_t blocks = (n_rows + BLOCK - 1) / BLOCK;
        int threads = threads_for(total * n_rows * width);
        Input<decltype(w)> input(from, width, total, width);
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
        for (int64_t u = 0; u < used; u++)
            for (int64_t b = 0; b < blocks; b++) {
                int64_t start = starts[u], first = copies[start].expert * n_rows;
                int64_t begin = b * BLOCK, end = std::min(begin + BLOCK, n_rows);
                input.products(
                    w, first + begin, first + end, start, starts[u + 1] - start, to + start * n_rows + begin, n_rows
                );
            }
    };
    with_weights(a[6].whole, at<void>(a[7]), at<void>(a[8]), hidden, [&](auto w) { each(w, 2 * inner, hidden, rows.data(), gate_up.data()); });
    for (int64_t i = 0; i < total; i++) gate(gate_up.data() + i * 2 * inner, active.data() + i * inner, inner, float(a[14].real));
    with_weights(a[9].whole, at<void>(a[10]), at<void>(a[11]), inner, [&](auto w) { each(w, hidden, inner, active.data(), done.data()); });
    std::fill_n(out, tokens * hidden, 0.0f);
    for (int64_t i = 0; i < total; i++) {
        float* to = out + copies[i].token * hidden;
        const float* from = done.data() + i * hidden;
        for (int64_t k = 0; k < hidden; k++) to[k] += copies[i].weight * from[k];
    }
}

// out (rows [begin, end), width) = the matrix in fp32 or bf16
extern "C" void unpack(const Argument* a) {
    int64_t begin = a[3].whole, end = a[4].whole, width = a[5].whole;
    with_weights(a[0].whole, at<void>(a[1]), at<void>(a[2]), width, [&](auto w) {
        auto write = [&](auto* out) {
            int threads = threads_for((end - begin) * width);
#pragma omp parallel for num_threads(threads) if (threads > 1)
            for (int64_t r = begin; r < end; r++)
                for (int64_t k = 0; k < width; k += GROUP)
                    for (int j = 0; j < GROUP / LANES; j++)
                        store(out + (r - begin) * width + k + j * LANES, w.load(r, k, j));
        };
        if (a[6].whole == 0) write(at<float>(a[7]));
        else write(at<bf16>(a[7]));
    });
}

// Other kernels, one after another: pairs of a kernel and its arguments.
extern "C" void play(const Argument* a) {
    const Argument* call = at<Argument>(a[0]);
    for (int64_t i = 0; i < a[1].whole; i++, call += 2)
        ((void (*)(const Argument*))call[0].pointer)(at<Argument>(call[1]));
}
