// Holds the kernels to plain loops, for instruction sets that this machine can only emulate (test_arm64.py).
//
// Prints `name error` per operation: the norm of the difference over the norm of the reference.

#include <cmath>
#include <cstdio>
#include <cstring>
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

}  // namespace

int main() {
    mx_set_num_threads(2);
    if (!mx_cpu_supports("arm64_bf16")) return 1;
    for (const int format : {MX_PLAIN, MX_INT8}) {
        for (const int rows : {1, 5, 8, 40}) check_linear(format, rows);
    }
    for (const int format : {MX_KV_PLAIN, MX_KV_INT8}) check_attention(format, 100);
    return 0;
}
