// Draws one token per row of logits: temperature, top-k, min-p, top-p, and the inverse of the cumulative distribution.
//
//   row --> maximum --> top-k:   tokens at or above a bound --> the k largest --> weights
//                   --> without: weights of all tokens
//       weights --> min-p --> top-p --> the token at which their running sum passes `uniform` * sum
//
// Each row is one thread's work, and reads memory once: a row of 152k logits fits into the second-level cache. The same
// set of tokens as in native/sampling/filters.py, which is what this file is tested against; equally likely tokens
// rank by id, lowest first.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace mx {
namespace {

constexpr int64_t kFailed = -1;
constexpr int64_t kBlock = 512;          // weights of which one sum is kept
constexpr int64_t kGroupVectors = 64;    // vectors whose lanes' maxima bound the k-th largest logit
constexpr int kDroppedBits = 17;         // of a weight; the others number its bin, and order the bins
constexpr float kFirstShare = 0x1p-10f;  // where the search for the tokens of top-p begins
constexpr float kShareStep = 0x1p-5f;
constexpr float kLowestShare = 0x1p-60f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Candidate {
    float value;  // a logit, then a weight
    int32_t id;
};

/// What a thread needs for its rows; kept between calls.
struct Scratch {
    std::vector<float> weights;
    std::vector<float> maxima;
    std::vector<double> ends;
    std::vector<double> bins;
    std::vector<Candidate> candidates;
    std::vector<Candidate> tied;
};

struct Row {
    const float* logits;
    int64_t size;
    float temperature;
    int64_t top_k;
    float top_p;
    float min_p;
    double uniform;
};

/// A bit for each lane of `value` that is at least `bound`.
MX_INLINE uint32_t lanes_at_least(Floats value, Floats bound) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)value, (__m512)bound, _CMP_GE_OQ);
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)(value >= bound)));
#else
    const Ints is_at_least = value >= bound;
    uint32_t bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= static_cast<uint32_t>(is_at_least[lane] & 1) << lane;
    return bits;
#endif
}

/// Calls `body(id)` for every value that is at least `bound`, in ascending order.
template <class Body>
MX_INLINE void for_each_at_least(const float* values, int64_t size, float bound, Body body) {
    const Floats bounds = splat(bound);
    int64_t first = 0;
    for (; first + kLanes <= size; first += kLanes) {
        for (uint32_t bits = lanes_at_least(load(values + first), bounds); bits; bits &= bits - 1) {
            body(first + __builtin_ctz(bits));
        }
    }
    for (; first < size; ++first) {
        if (values[first] >= bound) body(first);
    }
}

/// The largest logit, or infinity if there is a NaN; `maxima` gets those of disjoint groups that cover the row.
float maximum(const Row& row, std::vector<float>& maxima) {
    maxima.clear();
    Ints is_nan = {};
    float largest = -kInfinity;
    int64_t first = 0;
    while (first + kLanes <= row.size) {
        const int64_t end = std::min(first + kGroupVectors * kLanes, row.size / kLanes * kLanes);
        Floats group = splat(-kInfinity);
        for (; first < end; first += kLanes) {
            const Floats value = load(row.logits + first);
            is_nan |= value != value;
            group = max(value, group);
        }
        const size_t count = maxima.size();
        maxima.resize(count + kLanes);
        store(maxima.data() + count, group);
        largest = std::max(largest, horizontal_max(group));
    }
    for (; first < row.size; ++first) {
        const float value = row.logits[first];
        if (value != value) return kInfinity;
        maxima.push_back(value);
        largest = std::max(largest, value);
    }
    return horizontal_sum(is_nan) ? kInfinity : largest;
}

int64_t first_equal(const Row& row, float value) {
    const Floats values = splat(value);
    int64_t first = 0;
    for (; first + kLanes <= row.size; first += kLanes) {
        const uint32_t bits = lanes_at_least(load(row.logits + first), values);
        if (bits) return first + __builtin_ctz(bits);
    }
    while (row.logits[first] != value) ++first;
    return first;
}

bool ranks_before(const Candidate& a, const Candidate& b) { return a.value != b.value ? a.value > b.value : a.id < b.id; }

bool has_lower_id(const Candidate& a, const Candidate& b) { return a.id < b.id; }

/// Leaves the k most likely tokens in `candidates`, by id.
void take_top_k(const Row& row, Scratch& scratch) {
    std::vector<float>& bounds = scratch.maxima;
    const size_t k = static_cast<size_t>(row.top_k);
    if (k > bounds.size()) bounds.assign(row.logits, row.logits + row.size);
    std::nth_element(bounds.begin(), bounds.begin() + (k - 1), bounds.end(), [](float a, float b) { return a > b; });
    std::vector<Candidate>& candidates = scratch.candidates;
    candidates.clear();
    for_each_at_least(row.logits, row.size, bounds[k - 1], [&](int64_t id) {
        candidates.push_back({row.logits[id], static_cast<int32_t>(id)});
    });
    if (candidates.size() > k) {
        std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(), ranks_before);
        candidates.resize(k);
        std::sort(candidates.begin(), candidates.end(), has_lower_id);
    }
}

MX_INLINE Floats weigh(Floats logits, Floats largest, Floats temperature) { return exp((logits - largest) / temperature); }

/// Turns the logits of `candidates` into weights and drops those below `min_p`.
void weigh_candidates(const Row& row, float largest, std::vector<Candidate>& candidates) {
    size_t kept = 0;
    for (size_t first = 0; first < candidates.size(); first += kLanes) {
        const size_t count = std::min<size_t>(kLanes, candidates.size() - first);
        float lane[kLanes] = {};
        for (size_t i = 0; i < count; ++i) lane[i] = candidates[first + i].value;
        store(lane, weigh(load(lane), splat(largest), splat(row.temperature)));
        for (size_t i = 0; i < count; ++i) {
            if (lane[i] >= row.min_p) candidates[kept++] = {lane[i], candidates[first + i].id};
        }
    }
    candidates.resize(kept);
}

/// Writes all weights, those below `min_p` as 0, up to a whole block, and the running sum of blocks.
void weigh_all(const Row& row, float largest, Scratch& scratch) {
    const int64_t blocks = divide_up(row.size, kBlock);
    scratch.weights.resize(static_cast<size_t>(blocks * kBlock));
    scratch.ends.resize(static_cast<size_t>(blocks));
    const Floats largests = splat(largest), temperatures = splat(row.temperature), least = splat(row.min_p);
    double end = 0;
    for (int64_t block = 0; block < blocks; ++block) {
        float* weights = scratch.weights.data() + block * kBlock;
        const int64_t count = std::min(kBlock, row.size - block * kBlock);
        Floats sums = {};
        for_each_vector(count, [&](int64_t i, auto lanes) {
            const Floats all = weigh(load(row.logits + block * kBlock + i, lanes), largests, temperatures);
            const Floats kept = all >= least ? all : Floats{};
            store(weights + i, kept, lanes);
            sums += load(weights + i, lanes);  // lanes past the end of the row count as 0
        });
        std::fill(weights + count, weights + kBlock, 0.0f);
        end += horizontal_sum(sums);
        scratch.ends[static_cast<size_t>(block)] = end;
    }
}

double total_weight(const std::vector<Candidate>& candidates) {
    double total = 0;
    for (const Candidate& candidate : candidates) total += candidate.value;
    return total;
}

/// Leaves the most likely tokens whose weight together first reaches `top_p` of `total`, by id.
///
/// Weights are binned by their leading bits; only the bin in which the share is reached is sorted.
void take_top_p(float top_p, double total, Scratch& scratch) {
    std::vector<Candidate>& candidates = scratch.candidates;
    std::vector<double>& bins = scratch.bins;
    const auto bin_of = [](const Candidate& candidate) { return float_bits(candidate.value) >> kDroppedBits; };
    bins.assign((float_bits(1.0f) >> kDroppedBits) + 1, 0.0);
    for (const Candidate& candidate : candidates) bins[bin_of(candidate)] += candidate.value;
    const double target = static_cast<double>(top_p) * total;
    double above = 0;
    size_t last = bins.size() - 1;
    for (; last > 0 && above + bins[last] < target; --last) above += bins[last];
    std::vector<Candidate>& tied = scratch.tied;
    tied.clear();
    for (const Candidate& candidate : candidates) {
        if (bin_of(candidate) == last) tied.push_back(candidate);
    }
    std::sort(tied.begin(), tied.end(), ranks_before);
    size_t kept = 0;
    for (double reached = above; kept < tied.size() && reached < target; ++kept) reached += tied[kept].value;
    tied.resize(std::max<size_t>(kept, above > 0 ? 0 : 1));
    std::sort(tied.begin(), tied.end(), has_lower_id);
    auto next = tied.begin();
    const auto is_dropped = [&](const Candidate& candidate) {
        if (bin_of(candidate) != last) return bin_of(candidate) < last;
        const bool is_kept = next != tied.end() && next->id == candidate.id;
        if (is_kept) ++next;
        return !is_kept;
    };
    candidates.erase(std::remove_if(candidates.begin(), candidates.end(), is_dropped), candidates.end());
}

/// Leaves in `candidates` tokens with their weights that hold those of top-p, the fewer the better.
void gather_heavy(const Row& row, Scratch& scratch) {
    const double target = static_cast<double>(row.top_p) * scratch.ends.back();
    std::vector<Candidate>& candidates = scratch.candidates;
    for (float share = kFirstShare;; share *= kShareStep) {
        const bool is_last = share < kLowestShare;
        candidates.clear();
        for_each_at_least(scratch.weights.data(), row.size, is_last ? std::numeric_limits<float>::min() : share,
                          [&](int64_t id) {
                              candidates.push_back({scratch.weights[static_cast<size_t>(id)], static_cast<int32_t>(id)});
                          });
        // A little more than the share, as sums of another order may differ in their last bits.
        if (is_last || total_weight(candidates) > target * (1 + 1e-6)) return;
    }
}

int64_t draw(const std::vector<Candidate>& candidates, double uniform) {
    const double total = total_weight(candidates);
    const double target = std::min(uniform * total, std::nextafter(total, 0.0));
    double end = 0;
    for (const Candidate& candidate : candidates) {
        end += candidate.value;
        if (end > target) return candidate.id;
    }
    return candidates.back().id;
}

/// First the block, then the token within it.
int64_t draw_from_all(const Scratch& scratch, double uniform) {
    const std::vector<double>& ends = scratch.ends;
    const double target = std::min(uniform * ends.back(), std::nextafter(ends.back(), 0.0));
    const size_t block = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), target) - ends.begin());
    const double start = block ? ends[block - 1] : 0.0;
    const double share = (target - start) / (ends[block] - start);
    const float* weights = scratch.weights.data() + block * kBlock;
    double total = 0;
    for (int64_t i = 0; i < kBlock; ++i) total += weights[i];
    const double inner = std::min(share * total, std::nextafter(total, 0.0));
    double end = 0;
    int64_t token = 0;
    for (; token < kBlock - 1; ++token) {
        end += weights[token];
        if (end > inner) break;
    }
    return static_cast<int64_t>(block) * kBlock + token;
}

int64_t sample_row(const Row& row, Scratch& scratch) {
    const float largest = maximum(row, scratch.maxima);
    if (!std::isfinite(largest)) return kFailed;
    if (row.temperature == 0) return first_equal(row, largest);
    if (row.top_k > 0 && row.top_k < row.size) {
        take_top_k(row, scratch);
        weigh_candidates(row, largest, scratch.candidates);
        if (row.top_p < 1) take_top_p(row.top_p, total_weight(scratch.candidates), scratch);
        return draw(scratch.candidates, row.uniform);
    }
    weigh_all(row, largest, scratch);
    if (row.top_p >= 1) return draw_from_all(scratch, row.uniform);
    gather_heavy(row, scratch);
    take_top_p(row.top_p, scratch.ends.back(), scratch);
    return draw(scratch.candidates, row.uniform);
}

}  // namespace
}  // namespace mx

void mx_sample(const MxSampleCall* call) {
    mx::parallel_for(call->count, call->vocab_size, [&](int64_t i) {
        static thread_local mx::Scratch scratch;
        const int64_t row = call->rows[i];
        call->token_ids[row] = mx::sample_row(
            {call->logits + row * call->stride, call->vocab_size, call->temperature[row], call->top_k[row],
             call->top_p[row], call->min_p[row], call->uniform[row]},
            scratch);
    });
}
