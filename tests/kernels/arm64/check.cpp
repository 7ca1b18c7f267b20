// Holds the kernels to plain loops, for instruction sets that this machine can only emulate (test_arm64.py).
//
// Prints `name error` per operation: the norm of the difference over the norm of the reference; of the sampler, the share
// of wrong tokens. The only argument is the name of the library.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "kernels.h"

namespace {

using Row = std::vector<uint16_t>;  // bf16

std::mt19937 generator(1);

uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float to_float(uint16_t value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

Row random_row(size_t count) {
    std::normal_distribution<float> normal;
    Row row(count);
    for (uint16_t& value : row) value = to_bf16(normal(generator));
    return row;
}

struct Error {
    double difference = 0;
    double reference = 0;
    void add(double expected, double actual) {
        difference += (expected - actual) * (expected - actual);
        reference += expected * expected;
    }
    void print(const char* name, int format, int rows) const {
        std::printf("%s-%d-%d %.3e\n", name, format, rows, std::sqrt(difference / reference));
    }
};

void check_linear(int format, int rows) {
    constexpr int kOut = 130, kIn = 160;
    const Row weight = random_row(kOut * kIn), x = random_row(rows * kIn);
    std::vector<char> packed(mx_packed_bytes(MX_BF16, format, kOut, kIn));
    const MxPackLinearCall pack{weight.data(), kIn, kOut, kIn, packed.data(), MX_BF16, format};
    mx_pack_linear(&pack);
    MxLinear layer{};
    layer.weights = packed.data();
    layer.in_features = kIn;
    layer.out_features = kOut;
    layer.format = format;
    std::vector<float> out(rows * kOut);
    const MxLinearCall call{&layer, x.data(), kIn, rows, out.data(), kOut, MX_BF16, 1};
    mx_linear(&call);
    Error error;
    for (int row = 0; row < rows; ++row) {
        for (int column = 0; column < kOut; ++column) {
            double sum = 0;
            for (int k = 0; k < kIn; ++k) {
                sum += static_cast<double>(to_float(weight[column * kIn + k])) * to_float(x[row * kIn + k]);
            }
            error.add(sum, out[row * kOut + column]);
        }
    }
    error.print("linear", format, rows);
}

/// An adapter of two parts with a gain and a bias, for all rows but the first; of the second part only one rank.
void check_adapter(int rows) {
    constexpr int kOut = 130, kIn = 160, kFirst = 70, kRank = 9, kRanks = 12;
    const int outputs[] = {kFirst, kOut - kFirst}, ranks[] = {kRank, 1};
    const Row x = random_row(rows * kIn), before = random_row(rows * kOut);
    Row a(kRanks * kIn, 0);  // ranks 9 and 11 are padding
    MxAdapterPart parts[2]{};
    Row b[2];
    std::vector<char> packed[2];
    for (int i = 0; i < 2; ++i) {
        const Row own = random_row(ranks[i] * kIn);
        std::copy(own.begin(), own.end(), a.begin() + i * (kRank + 1) * kIn);
        b[i] = random_row(outputs[i] * ranks[i]);
        packed[i].resize(mx_packed_bytes(MX_BF16, MX_PLAIN, outputs[i], ranks[i]));
        const MxPackLinearCall pack{b[i].data(), ranks[i], outputs[i], ranks[i], packed[i].data(), MX_BF16, MX_PLAIN};
        mx_pack_linear(&pack);
        parts[i] = {packed[i].data(), i * kFirst, outputs[i], i * (kRank + 1), ranks[i], 0.5f, 0};
    }
    const std::vector<float> gain_change(kOut, 0.25f), bias(kOut, 3.0f);
    const MxAdapter adapter{a.data(), gain_change.data(), bias.data(), parts, kIn, kIn, kRanks, 2};
    const MxAdapter* slots[] = {nullptr, &adapter};
    const MxAdapterRanges ranges{1, {{1, rows, 1, 2.0f}}};
    std::vector<float> out(rows * kOut);
    for (size_t i = 0; i < out.size(); ++i) out[i] = to_float(before[i]);
    const MxAdaptCall call{slots, &ranges, x.data(), kIn, out.data(), kOut, MX_BF16, 1};
    mx_adapt(&call);
    Error error;
    for (int row = 0; row < rows; ++row) {
        for (int column = 0; column < kOut; ++column) {
            double sum = to_float(before[row * kOut + column]);
            const int i = column >= kFirst;
            if (row > 0) sum = sum * 1.5 + 2 * 3;
            for (int rank = 0; row > 0 && rank < ranks[i]; ++rank) {
                double shrunk = 0;
                for (int k = 0; k < kIn; ++k) {
                    shrunk += static_cast<double>(to_float(a[(i * (kRank + 1) + rank) * kIn + k])) *
                              to_float(x[row * kIn + k]);
                }
                sum += shrunk * to_float(b[i][(column - i * kFirst) * ranks[i] + rank]);
            }
            error.add(sum, out[row * kOut + column]);
        }
    }
    error.print("adapter", MX_PLAIN, rows);
}

/// A prompt of `tokens` tokens without rotation, so that the reference needs none.
void check_attention(int kv_format, int tokens) {
    constexpr int kHeads = 4, kKvHeads = 2, kDim = 64, kBlock = 16, kGroup = kHeads / kKvHeads;
    constexpr int kWidth = (kHeads + 2 * kKvHeads) * kDim;
    MxGeometry geometry{};
    geometry.num_heads = kHeads;
    geometry.num_kv_heads = kKvHeads;
    geometry.head_dim = kDim;
    geometry.block_size = kBlock;
    geometry.kv_format = kv_format;
    geometry.scale = 0.125f;
    const int blocks = (tokens + kBlock - 1) / kBlock;
    std::vector<float> cos_sin(tokens * kDim, 0.0f);
    std::vector<int32_t> positions(tokens), table(blocks);
    std::vector<int64_t> slots(tokens);
    for (int block = 0; block < blocks; ++block) table[block] = blocks - block;  // block 0 is nobody's
    for (int token = 0; token < tokens; ++token) {
        positions[token] = token;
        slots[token] = table[token / kBlock] * kBlock + token % kBlock;
        std::fill_n(cos_sin.begin() + token * kDim, kDim / 2, 1.0f);
    }
    const std::vector<int32_t> starts{0, tokens}, lengths{tokens};
    const MxStep step{positions.data(), slots.data(), table.data(), starts.data(), lengths.data(), blocks, tokens, 1};
    const size_t cache_bytes = static_cast<size_t>(blocks + 1) * kBlock * kKvHeads * kDim * 4;
    std::vector<char> keys(cache_bytes), values(cache_bytes);
    const Row qkv = random_row(static_cast<size_t>(tokens) * kWidth);
    Row rotated = qkv, out(static_cast<size_t>(tokens) * kHeads * kDim);
    MxRopeKvWriteCall write{};
    write.qkv = rotated.data();
    write.qkv_stride = kWidth;
    write.cos_sin = cos_sin.data();
    write.geometry = &geometry;
    write.step = &step;
    write.key_cache = keys.data();
    write.value_cache = values.data();
    write.dtype = MX_BF16;
    mx_rope_kv_write(&write);
    const MxPagedAttentionCall attend{rotated.data(), kWidth,        &geometry,  &step,         keys.data(),
                                      values.data(),  out.data(), kHeads * kDim, MX_BF16};
    mx_paged_attention(&attend);
    Error error;
    for (int token = 0; token < tokens; ++token) {
        for (int head = 0; head < kHeads; ++head) {
            const uint16_t* query = &qkv[token * kWidth + head * kDim];
            const uint16_t* key = &qkv[(kHeads + head / kGroup) * kDim];
            const uint16_t* value = &qkv[(kHeads + kKvHeads + head / kGroup) * kDim];
            std::vector<double> weights(token + 1), sums(kDim, 0.0);
            double total = 0;
            for (int other = 0; other <= token; ++other) {
                double score = 0;
                for (int d = 0; d < kDim; ++d) score += to_float(query[d]) * to_float(key[other * kWidth + d]);
                weights[other] = std::exp(score * geometry.scale);
                total += weights[other];
                for (int d = 0; d < kDim; ++d) sums[d] += weights[other] * to_float(value[other * kWidth + d]);
            }
            for (int d = 0; d < kDim; ++d) error.add(sums[d] / total, to_float(out[(token * kHeads + head) * kDim + d]));
        }
    }
    error.print("attention", kv_format, tokens);
}

struct Sampling {
    const char* name;
    float temperature;
    int32_t top_k;
    float top_p;
    float min_p;
};

constexpr Sampling kSamplings[] = {{"greedy", 0, 0, 1, 0},     {"plain", 1, 0, 1, 0},    {"hot", 2, 0, 1, 0},
                                   {"top_k", 1, 40, 1, 0},     {"top_p", 1, 0, 0.8f, 0}, {"min_p", 1, 0, 1, 0.02f},
                                   {"all", 0.7f, 50, 0.95f, 0.001f}};

/// The token of one row: all tokens sorted by weight, cut off, and drawn from in order of their ids.
int64_t expected_token(const std::vector<float>& logits, const Sampling& sampling, double uniform) {
    std::vector<int> ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    const double largest = logits[ids[0]];
    if (sampling.temperature == 0) return ids[0];
    const auto weight = [&](int id) { return std::exp((logits[id] - largest) / sampling.temperature); };
    if (sampling.top_k) ids.resize(std::min<size_t>(ids.size(), sampling.top_k));
    while (weight(ids.back()) < sampling.min_p) ids.pop_back();
    double total = 0, reached = 0;
    for (const int id : ids) total += weight(id);
    size_t kept = 0;
    while (kept < ids.size() && (kept == 0 || reached < sampling.top_p * total)) reached += weight(ids[kept++]);
    ids.resize(kept);
    std::sort(ids.begin(), ids.end());
    double end = 0;
    for (const int id : ids) {
        end += weight(id);
        if (end > uniform * reached) return id;
    }
    return ids.back();
}

/// Prints the share of rows with another token; the last row has a NaN and must fail.
void check_sample(const Sampling& sampling, int vocab_size) {
    constexpr int kRows = 24;
    std::normal_distribution<float> normal(0, 3);
    std::uniform_real_distribution<double> uniform;
    std::vector<float> logits(kRows * vocab_size);
    for (float& value : logits) value = normal(generator);
    for (int i = 0; i < kRows / 2 * vocab_size; ++i) logits[i] = std::round(logits[i]);  // many are equally likely
    logits.back() = std::numeric_limits<float>::quiet_NaN();
    std::vector<int64_t> rows(kRows), tokens(kRows);
    std::iota(rows.begin(), rows.end(), 0);
    const std::vector<float> temperature(kRows, sampling.temperature), top_p(kRows, sampling.top_p),
        min_p(kRows, sampling.min_p);
    const std::vector<int32_t> top_k(kRows, sampling.top_k);
    std::vector<double> uniforms(kRows);
    for (double& value : uniforms) value = uniform(generator);
    const MxSampleCall call{logits.data(),      vocab_size,   vocab_size,   rows.data(),  kRows,
                            temperature.data(), top_k.data(), top_p.data(), min_p.data(), uniforms.data(),
                            tokens.data()};
    mx_sample(&call);
    int wrong = tokens[kRows - 1] != -1;
    for (int row = 0; row < kRows - 1; ++row) {
        const float* first = &logits[row * vocab_size];
        wrong += tokens[row] != expected_token({first, first + vocab_size}, sampling, uniforms[row]);
    }
    std::printf("sample-%s-%d %.3e\n", sampling.name, vocab_size, static_cast<double>(wrong) / kRows);
}

}  // namespace

int main(int, char** arguments) {
    mx_set_num_threads(2);
    if (!mx_cpu_supports(arguments[1])) return 1;
    for (const int format : {MX_PLAIN, MX_INT8}) {
        for (const int rows : {1, 5, 8, 40}) check_linear(format, rows);
    }
    for (const int rows : {2, 40}) check_adapter(rows);
    for (const int format : {MX_KV_PLAIN, MX_KV_INT8}) check_attention(format, 100);
    for (const Sampling& sampling : kSamplings) {
        for (const int vocab_size : {37, 5003}) check_sample(sampling, vocab_size);
    }
    return 0;
}
