// DeepSeek-V4's attention (`lichen.ops.compressed_attention`), forward and backward, in fp32: of the products only
// those are computed that are seen, and they stay in the cache until they are used.
//
// Queries come in blocks, whose keys are copied out of the list, rows and transposes. A row is one head's query; the
// rows of a tile go from their logits to their output before the next. Where an indexer has chosen the entries, a tile
// has one query's rows and its own entries. Gradients of keys and entries are added up in PARTS, whose sizes do not
// depend on the number of threads, so neither do the bits.
#include <algorithm>
#include <vector>

#include "products.h"
#include "tensors.h"

namespace training {
namespace {

constexpr int64_t PARTS = 8, QUERIES = 64;
constexpr int64_t ROWS = rows_of(2);  // of a tile

// Keys or entries that are seen, (count, width), padded to whole vectors and panels.
struct Seen {
    int64_t width, step, count = 0;
    std::vector<int64_t> ids;  // in the list
    std::vector<float> rows, panels, grads;

    explicit Seen(int64_t width) : width(width), step((width + LANES - 1) / LANES * LANES) {}

    int64_t padded() const { return (count + PANEL - 1) / PANEL * PANEL; }

    void take(int64_t first, int64_t end) {
        ids.resize(end - first);
        for (int64_t i = first; i < end; i++) ids[i - first] = i;
    }
    void take_chosen(const int64_t* chosen, int64_t k) {
        ids.clear();
        for (int64_t i = 0; i < k; i++)
            if (chosen[i] >= 0) ids.push_back(chosen[i]);
    }
    template <typename T> void copy(const T* list, int64_t list_step) {
        count = ids.size();
        rows.assign(padded() * step, 0);
        panels.resize(padded() * width);
        for (int64_t row = 0; row < count; row++)
            for (int64_t i = 0; i < width; i += LANES)
                store(rows.data() + row * step + i, get(list + ids[row] * list_step, i, width));
        for (int64_t panel = 0; panel < padded(); panel += PANEL)
            for (int64_t i = 0; i < width; i++)
                for (int64_t row = 0; row < PANEL; row++)
                    panels[(panel * width) + i * PANEL + row] = rows[(panel + row) * step + i];
    }
    void add_grads(float* list) const {
        for (int64_t row = 0; row < count; row++)
            for (int64_t i = 0; i < width; i += LANES) {
                float* to = list + ids[row] * width;
                set(to, i, width, add(get(to, i, width), load(grads.data() + row * step + i)));
            }
    }
};

struct Range {
    int64_t first, end;
};

// What is given of a list of tokens; `chosen` (tokens, k) may be null; entry_step: numbers from entry to entry.
struct List {
    const int64_t *chosen, *first, *last, *start, *end;
    int64_t tokens, heads, width, k, entry_step;
    float scale;
};

// Rows [row, row + count) of a list that are computed together, and their logits, `depth` times as many rows.
template <typename T> struct Tile {
    const List& list;
    Seen keys, entries;
    int64_t row = 0, count = 0, step, stride = 0;
    std::vector<float> x, p;  // rows (depth ROWS, step) and their products with keys, then entries

    Tile(const List& list, int64_t depth)
        : list(list), keys(list.width), entries(list.width), step(keys.step), x(depth * ROWS * step) {}

    // Columns of p that belong to keys and to entries; after each is room for a vector too many.
    int64_t column(int which) const { return which ? keys.padded() + LANES : 0; }
    const Seen& seen(int which) const { return which ? entries : keys; }
    Seen& seen(int which) { return which ? entries : keys; }

    // What queries [first, last] see, numbered as in `seen`.
    Range range(int which, int64_t first, int64_t last) const {
        const Seen& all = seen(which);
        if (all.count == 0) return {0, 0};
        if (which == 0) return {list.first[first] - all.ids[0], list.last[last] + 1 - all.ids[0]};
        if (list.chosen) return {0, all.count};
        return {list.start[first] - all.ids[0], list.end[last] - all.ids[0]};
    }
    Range of_row(int which, int64_t i) const {
        int64_t query = (row + i) / list.heads;
        return range(which, query, query);
    }
    Range of_all(int which) const { return range(which, row / list.heads, (row + count - 1) / list.heads); }

    void copy_rows(const T* from, int64_t at) {
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j < list.width; j += LANES)
                store(x.data() + (at + i) * step + j, get(from + (row + i) * list.width, j, list.width));
    }
    void write_rows(const float* from, T* to) const {
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j < list.width; j += LANES)
                set(to + (row + i) * list.width, j, list.width, load(from + i * step + j));
    }
    // p = x k of all that one of the rows sees.
    void multiply(int64_t rows) {
        stride = column(1) + entries.padded() + 2 * LANES;
        p.resize(std::max(p.size(), size_t(2 * ROWS * stride)));
        for (int which = 0; which < 2; which++) {
            Range all = of_all(which);
            const Seen& s = seen(which);
            for (int64_t first = all.first / PANEL * PANEL; first < all.end; first += PANEL)
                for (int64_t done = 0; done < rows; done += ROWS)
                    strip<2>(std::min(rows - done, ROWS), list.width, x.data() + done * step, step, 1,
                             s.panels.data() + first * list.width, PANEL,
                             p.data() + done * stride + column(which) + first, stride, false);
        }
    }
    float* numbers(int64_t at, int which) { return p.data() + at * stride + column(which); }

    // 0 for what others of the rows see, and this one does not.
    void zero_outside(int64_t at, int which, Range own) {
        Range all = of_all(which);
        std::memset(numbers(at, which) + all.first, 0, (own.first - all.first) * sizeof(float));
        std::memset(numbers(at, which) + own.end, 0, (all.end - own.end) * sizeof(float));
    }
    // out = p k, by the rows of p from `at` on.
    void mix(int64_t at, float* out) {
        bool more = false;
        for (int which = 0; which < 2; which++) {
            Range all = of_all(which);
            if (all.end <= all.first) continue;
            wide(count, step, all.end - all.first, numbers(at, which) + all.first, stride, 1,
                 seen(which).rows.data() + all.first * step, step, out, step, more);
            more = true;
        }
    }
    // The gradients of what is seen += the transpose of p's first `rows` rows times x.
    void add_outer(int64_t rows) {
        for (int which = 0; which < 2; which++) {
            Range all = of_all(which);
            for (int64_t first = all.first; first < all.end; first += ROWS)
                wide(std::min(all.end - first, ROWS), step, rows, numbers(0, which) + first, 1, stride, x.data(), step,
                     seen(which).grads.data() + first * step, step, true);
        }
    }
    // Calls `of_tile` for all tiles of queries [begin, stop), and `of_seen` when keys or entries are done with.
    template <typename F, typename G>
    void each(const T* all_keys, const T* all_entries, int64_t begin, int64_t stop, F of_tile, G of_seen) {
        keys.take(list.first[begin], list.last[stop - 1] + 1);
        keys.copy(all_keys, list.width);
        keys.grads.assign(keys.rows.size(), 0);
        int64_t unit = list.chosen ? 1 : stop - begin;
        for (int64_t query = begin; query < stop; query += unit) {
            if (list.chosen) entries.take_chosen(list.chosen + query * list.k, list.k);
            else entries.take(list.start[begin], list.end[stop - 1]);
            entries.copy(all_entries, list.entry_step);
            entries.grads.assign(entries.rows.size(), 0);
            int64_t rows_end = (query + unit) * list.heads;
            for (row = query * list.heads; row < rows_end; row += ROWS) {
                count = std::min(rows_end - row, ROWS);
                of_tile();
            }
            of_seen(1);
        }
        of_seen(0);
    }
};

}  // namespace

// q and out (tokens, heads, width), keys and entries (..., width), sinks (heads), log_sums (tokens, heads): of the
// powers of all logits, the sink's included. Query t sees keys first[t] to last[t], and entries start[t] to end[t] - 1
// or those of chosen[t].
template <typename T>
void compressed_forward(const T* q, const T* keys, const T* entries, const int64_t* chosen, const float* sinks,
                        const int64_t* first, const int64_t* last, const int64_t* start, const int64_t* end, T* out,
                        float* log_sums, int64_t tokens, int64_t heads, int64_t width, int64_t k, int64_t entry_step, float scale) {
    List list{chosen, first, last, start, end, tokens, heads, width, k, entry_step, scale};
#pragma omp parallel num_threads(threads_for(tokens * heads * width * 64))
    {
        Tile<T> tile(list, 1);
        std::vector<float> mixed(ROWS * tile.step);
        float factors[ROWS];
#pragma omp for
        for (int64_t begin = 0; begin < tokens; begin += QUERIES) {
            auto of_tile = [&] {
                tile.copy_rows(q, 0);
                tile.multiply(tile.count);
                for (int64_t i = 0; i < tile.count; i++) {
                    float sink = sinks[(tile.row + i) % heads], most = sink, total = 0;
                    for (int which = 0; which < 2; which++) {
                        Range own = tile.of_row(which, i);
                        float* x = tile.numbers(i, which);
                        if (own.first == own.end) continue;
                        std::fill(x + own.end, x + own.end + LANES, -INFINITY);
                        vec top = all(-INFINITY);
                        for (int64_t j = own.first; j < own.end; j += LANES) top = max(top, load(x + j));
                        most = std::max(most, largest(top) * scale);
                    }
                    for (int which = 0; which < 2; which++) {
                        Range own = tile.of_row(which, i);
                        float* x = tile.numbers(i, which);
                        vec sums = zero();
                        for (int64_t j = own.first; j < own.end; j += LANES) {
                            vec e = exp(fma(load(x + j), all(scale), all(-most)));
                            store(x + j, e);
                            sums = add(sums, e);
                        }
                        total += sum(sums);
                        tile.zero_outside(i, which, own);
                    }
                    total += std::exp(sink - most);
                    log_sums[tile.row + i] = most + std::log(total);
                    factors[i] = 1 / total;
                }
                tile.mix(0, mixed.data());
                for (int64_t i = 0; i < tile.count; i++)
                    for (int64_t j = 0; j < tile.step; j += LANES) {
                        float* y = mixed.data() + i * tile.step + j;
                        store(y, mul(load(y), all(factors[i])));
                    }
                tile.write_rows(mixed.data(), out);
            };
            tile.each(keys, entries, begin, std::min(begin + QUERIES, tokens), of_tile, [](int) {});
        }
    }
}

// The gradients of q, of keys and entries (PARTS, ..., width), to be added up, and along (tokens, heads), the product of
// out with its gradient, by which the sinks' is computed.
template <typename T>
void compressed_backward(const T* grad, const T* out, const T* q, const T* keys, const T* entries,
                         const int64_t* chosen, const int64_t* first, const int64_t* last, const int64_t* start,
                         const int64_t* end, const float* log_sums, T* grad_q, float* grad_keys, float* grad_entries,
                         float* along, int64_t tokens, int64_t heads, int64_t width, int64_t k, int64_t n_keys,
                         int64_t n_entries, float scale) {
    List list{chosen, first, last, start, end, tokens, heads, width, k, width, scale};
    int64_t blocks = (tokens + QUERIES - 1) / QUERIES;
#pragma omp parallel num_threads(threads_for(tokens * heads * width * 256))
    {
        Tile<T> tile(list, 2);
        std::vector<float> mixed(ROWS * tile.step);
#pragma omp for
        for (int64_t part = 0; part < PARTS; part++) {
            float* sums[2] = {grad_keys + part * n_keys * width, grad_entries + part * n_entries * width};
            std::memset(sums[0], 0, n_keys * width * sizeof(float));
            std::memset(sums[1], 0, n_entries * width * sizeof(float));
            auto of_tile = [&] {
                int64_t count = tile.count;
                tile.copy_rows(grad, 0);
                tile.copy_rows(q, count);
                tile.multiply(2 * count);
                for (int64_t i = 0; i < count; i++) {
                    vec total = zero();
                    for (int64_t j = 0; j < width; j += LANES)
                        total = fma(load(tile.x.data() + i * tile.step + j), get(out + (tile.row + i) * width, j, width),
                                    total);
                    float mean = along[tile.row + i] = sum(total), log_sum = log_sums[tile.row + i];
                    for (int which = 0; which < 2; which++) {  // the slopes of p, and the logits: p, and their slopes
                        Range own = tile.of_row(which, i);
                        float *slopes = tile.numbers(i, which), *logits = tile.numbers(count + i, which);
                        for (int64_t j = own.first; j < own.end; j += LANES) {
                            vec p = exp(fma(load(logits + j), all(scale), all(-log_sum)));
                            store(logits + j, mul(mul(sub(load(slopes + j), all(mean)), all(scale)), p));
                            store(slopes + j, p);
                        }
                        tile.zero_outside(i, which, own);
                        tile.zero_outside(count + i, which, own);
                    }
                }
                tile.mix(count, mixed.data());
                tile.write_rows(mixed.data(), grad_q);
                tile.add_outer(2 * count);
            };
            auto of_seen = [&](int which) { tile.seen(which).add_grads(sums[which]); };
            for (int64_t block = part * blocks / PARTS; block < (part + 1) * blocks / PARTS; block++)
                tile.each(keys, entries, block * QUERIES, std::min((block + 1) * QUERIES, tokens), of_tile, of_seen);
        }
    }
}

}  // namespace training

KERNEL(compressed_forward)
KERNEL(compressed_backward)
