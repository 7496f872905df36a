// Causal attention in fp32, forward and backward: of the logits only those are computed that are seen, and those of
// a block of queries stay in the cache from one product to the next.
//
// Of every key head in turn. A row is one query head's query: with G query heads per key head, row r is query r / G.
// The list's blocks of queries come as a table (`Block`). P, the probabilities of a block, is kept for the backward
// pass: rows of Block::width(), the columns being keys from Block::first() on.
#include <algorithm>
#include <vector>

#include "products.h"

namespace {

constexpr int64_t ALIGN = 64;  // columns of P start and end at multiples of this

struct Block {
    int64_t first_query, end_query, first_key;

    int64_t first() const { return first_key / ALIGN * ALIGN; }
    // Not a power of two, so that a column's numbers do not all want the same place in the cache.
    int64_t width() const { return (end_query - first() + ALIGN - 1) / ALIGN * ALIGN + 16; }
};

// A matrix (rows, width) whose rows are padded with zeros to whole vectors: itself, or a copy.
struct Padded {
    int64_t rows, width, step;
    float* data;
    std::vector<float> copy;

    Padded(const float* from, int64_t rows, int64_t width, bool read)
        : rows(rows), width(width), step((width + LANES - 1) / LANES * LANES), data((float*)from) {
        if (step == width) return;
        copy.assign(rows * step, 0);
        data = copy.data();
        for (int64_t row = 0; read && row < rows; row++)
            std::memcpy(data + row * step, from + row * width, width * sizeof(float));
    }
    void write(float* to) const {
        for (int64_t row = 0; data != to && row < rows; row++)
            std::memcpy(to + row * width, data + row * step, width * sizeof(float));
    }
};

// The transpose of x (rows, width) in panels of PANEL rows: panel, width, row.
std::vector<float> transposed(const float* x, int64_t rows, int64_t width) {
    std::vector<float> panels((rows + PANEL - 1) / PANEL * PANEL * width);
    for (int64_t row = 0; row < rows; row++) {
        float* to = panels.data() + row / PANEL * PANEL * width + row % PANEL;
        for (int64_t i = 0; i < width; i++) to[i * PANEL] = x[row * width + i];
    }
    return panels;
}

// Products of the rows of x (rows, width) of a block with all keys that they see, a panel at a time.
void by_keys(const Block& block, int64_t groups, const float* x, int64_t width, const std::vector<float>& panels,
             float* out) {
    int64_t rows = (block.end_query - block.first_query) * groups;
    for (int64_t key = block.first_key / PANEL * PANEL; key < block.end_query; key += PANEL) {
        int64_t row = std::max(int64_t(0), key - block.first_query) * groups;
        for (; row < rows; row += rows_of(2)) {
            int64_t count = std::min(rows - row, int64_t(rows_of(2)));
            strip<2>(count, width, x + row * width, width, 1, panels.data() + key * width, PANEL,
                     out + row * block.width() + key - block.first(), block.width(), false);
        }
    }
}

// The columns of P that a row sees, and those of its neighbours that a tile sees.
struct Columns {
    int64_t first, end;
    Columns(const Block& block, int64_t groups, const int32_t* start, int64_t row, int64_t last_row)
        : first(std::max(int64_t(start[block.first_query + row / groups]), block.first_key) - block.first()),
          end(block.first_query + last_row / groups + 1 - block.first()) {}
};

float dot(const float* a, const float* b, int64_t n) {
    vec sums[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int j = 0; j < 4; j++) sums[j] = fma(load(a + i + j * LANES), load(b + i + j * LANES), sums[j]);
    for (; i + LANES <= n; i += LANES) sums[0] = fma(load(a + i), load(b + i), sums[0]);
    float total = sum(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
    for (; i < n; i++) total += a[i] * b[i];
    return total;
}

void zero_outside(float* row, int64_t first, int64_t end, int64_t width) {
    std::memset(row, 0, first * sizeof(float));
    std::memset(row + end, 0, (width - end) * sizeof(float));
}

int64_t kept_numbers(const Block* blocks, int64_t count, int64_t groups) {
    int64_t numbers = 0;
    for (int64_t b = 0; b < count; b++)
        numbers += (blocks[b].end_query - blocks[b].first_query) * groups * blocks[b].width();
    return numbers;
}

}  // namespace

// How many numbers of P are kept of one key head.
extern "C" void attention_kept(const Argument* a) {
    *at<int64_t>(a[3]) = kept_numbers(at<Block>(a[0]), a[1].whole, a[2].whole);
}

// q (heads, tokens, groups, n), k (heads, tokens, n), v (heads, tokens, m) -> out (heads, tokens, groups, m) and, unless
// null, largest (heads, groups), the largest scaled logit. start (tokens): where the sequence of each begins. p is as
// long as attention_kept says, per head, or where it is not kept null.
extern "C" void attention_forward(const Argument* a) {
    const float *q = at<float>(a[0]), *k = at<float>(a[1]), *v = at<float>(a[2]);
    float *out = at<float>(a[3]), *p = at<float>(a[4]), *most = at<float>(a[5]);
    const Block* blocks = at<Block>(a[6]);
    int64_t count = a[7].whole;
    const int32_t* start = at<int32_t>(a[8]);
    int64_t heads = a[9].whole, tokens = a[10].whole, groups = a[11].whole, n = a[12].whole, m = a[13].whole;
    float scale = float(a[14].real);
    int64_t kept = kept_numbers(blocks, count, groups);
#pragma omp parallel for num_threads(threads_for(heads * kept * (n + m)))
    for (int64_t head = 0; head < heads; head++) {
        std::vector<float> keys = transposed(k + head * tokens * n, tokens, n), scratch;
        Padded values(v + head * tokens * m, tokens, m, true);
        Padded result(out + head * tokens * groups * m, tokens * groups, m, false);
        float* next = p + head * kept;
        for (const Block* block = blocks; block < blocks + count; block++) {
            int64_t rows = (block->end_query - block->first_query) * groups, width = block->width();
            if (!p) scratch.resize(std::max(scratch.size(), size_t(rows * width)));
            float* logits = p ? next : scratch.data();
            int64_t first_row = block->first_query * groups;
            by_keys(*block, groups, q + (head * tokens * groups + first_row) * n, n, keys, logits);
            for (int64_t row = 0; row < rows; row++) {
                Columns seen(*block, groups, start, row, row);
                float* x = logits + row * width;
                float top = softmax(x + seen.first, seen.end - seen.first, scale);
                zero_outside(x, seen.first, seen.end, width);
                if (most) {
                    float* known = most + head * groups + row % groups;
                    *known = *known > top ? *known : top;
                }
            }
            for (int64_t row = 0; row < rows; row += rows_of(2)) {
                int64_t some = std::min(rows - row, int64_t(rows_of(2)));
                Columns seen(*block, groups, start, row, row + some - 1);
                wide(some, values.step, seen.end - seen.first, logits + row * width + seen.first, width, 1,
                     values.data + (block->first() + seen.first) * values.step, values.step,
                     result.data + (first_row + row) * values.step, values.step, false);
            }
            next += rows * width;
        }
        result.write(out + head * tokens * groups * m);
    }
}

// The gradients of q, k and v from that of out, all shaped as in attention_forward, and its p.
extern "C" void attention_backward(const Argument* a) {
    const float *q = at<float>(a[0]), *k = at<float>(a[1]), *v = at<float>(a[2]), *grad = at<float>(a[3]);
    const float* p = at<float>(a[4]);
    float *grad_q = at<float>(a[5]), *grad_k = at<float>(a[6]), *grad_v = at<float>(a[7]);
    const Block* blocks = at<Block>(a[8]);
    int64_t count = a[9].whole;
    const int32_t* start = at<int32_t>(a[10]);
    int64_t heads = a[11].whole, tokens = a[12].whole, groups = a[13].whole, n = a[14].whole, m = a[15].whole;
    float scale = float(a[16].real);
    int64_t kept = kept_numbers(blocks, count, groups);
#pragma omp parallel for num_threads(threads_for(2 * heads * kept * (n + m)))
    for (int64_t head = 0; head < heads; head++) {
        int64_t all_rows = tokens * groups;
        std::vector<float> panels = transposed(v + head * tokens * m, tokens, m), scratch;
        Padded queries(q + head * all_rows * n, all_rows, n, true), keys(k + head * tokens * n, tokens, n, true);
        Padded grads(grad + head * all_rows * m, all_rows, m, true);
        Padded to_q(grad_q + head * all_rows * n, all_rows, n, false);
        Padded to_k(grad_k + head * tokens * n, tokens, n, false), to_v(grad_v + head * tokens * m, tokens, m, false);
        std::memset(to_k.data, 0, tokens * to_k.step * sizeof(float));
        std::memset(to_v.data, 0, tokens * to_v.step * sizeof(float));
        const float* next = p + head * kept;
        for (const Block* block = blocks; block < blocks + count; block++) {
            int64_t rows = (block->end_query - block->first_query) * groups, width = block->width();
            int64_t first_row = block->first_query * groups;
            scratch.resize(std::max(scratch.size(), size_t(rows * width)));
            float* slopes = scratch.data();
            by_keys(*block, groups, grad + (head * all_rows + first_row) * m, m, panels, slopes);
            for (int64_t row = 0; row < rows; row++) {
                Columns seen(*block, groups, start, row, row);
                float* g = slopes + row * width;
                const float* probability = next + row * width;
                vec mean = all(dot(g + seen.first, probability + seen.first, seen.end - seen.first));
                zero_outside(g, seen.first, seen.end, width);
                for (int64_t i = seen.first / LANES * LANES; i < seen.end; i += LANES)
                    store(g + i, mul(mul(sub(load(g + i), mean), all(scale)), load(probability + i)));
            }
            for (int64_t row = 0; row < rows; row += rows_of(2)) {
                int64_t some = std::min(rows - row, int64_t(rows_of(2)));
                Columns seen(*block, groups, start, row, row + some - 1);
                wide(some, keys.step, seen.end - seen.first, slopes + row * width + seen.first, width, 1,
                     keys.data + (block->first() + seen.first) * keys.step, keys.step,
                     to_q.data + (first_row + row) * keys.step, keys.step, false);
            }
            for (int64_t key = block->first_key; key < block->end_query; key += rows_of(2)) {
                int64_t some = std::min(block->end_query - key, int64_t(rows_of(2))), column = key - block->first();
                int64_t row = std::max(int64_t(0), key - block->first_query) * groups, depth = rows - row;
                wide(some, to_v.step, depth, next + row * width + column, 1, width,
                     grads.data + (first_row + row) * grads.step, grads.step, to_v.data + key * to_v.step, to_v.step,
                     true);
                wide(some, to_k.step, depth, slopes + row * width + column, 1, width,
                     queries.data + (first_row + row) * queries.step, queries.step, to_k.data + key * to_k.step,
                     to_k.step, true);
            }
            next += rows * width;
        }
        to_q.write(grad_q + head * all_rows * n);
        to_k.write(grad_k + head * tokens * n);
        to_v.write(grad_v + head * tokens * m);
    }
}
