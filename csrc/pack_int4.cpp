// Packs the weights of int4 checkpoints, straight from their 32-bit words, into the blocks that int4.h draws.
//
//   words of inputs  (GPTQ, compressed-tensors)      words of columns  (AWQ)
//
//     column n:  k7 k6 k5 k4 k3 k2 k1 k0               input k:  n7 n5 n3 n1 n6 n4 n2 n0
//                ^ bit 31        bit 0 ^                         ^ bit 31        bit 0 ^

#include <algorithm>
#include <cstring>

#include "int4.h"
#include "kernels.h"
#include "parallel.h"

namespace mx {
namespace {

constexpr int kWordNibbles = 8;
constexpr int kColumnShifts[kWordNibbles] = {0, 16, 4, 20, 8, 24, 12, 28};

/// Four bits to a byte: the lower half of every byte of the result is one of the lower 16 bits' nibbles.
uint32_t spread(uint32_t nibbles) {
    nibbles = (nibbles | nibbles << 8) & 0x00ff00ffu;
    return (nibbles | nibbles << 4) & kNibbles;
}

/// Eight neighbouring inputs of one column in the order of int4.h.
uint32_t arrange(uint32_t word) { return spread(word & 0xffffu) | spread(word >> 16) << 4; }

/// Fills `words` with inputs `first_input .. + 7` of some columns, lowest four bits first; past K they may be anything.
void gather(const MxPackInt4Call& call, int64_t first_input, int64_t first_column, int columns, uint32_t* words) {
    const bool is_of_inputs = call.word_order == MX_WORDS_OF_INPUTS;
    if (is_of_inputs && !call.input_order) {
        const uint32_t* from = call.words + first_input / kWordNibbles * call.input_stride;
        for (int i = 0; i < columns; ++i) words[i] = from[(first_column + i) * call.column_stride];
        return;
    }
    std::fill_n(words, columns, 0u);
    const int count = static_cast<int>(std::min<int64_t>(kWordNibbles, call.in_features - first_input));
    for (int nibble = 0; nibble < count; ++nibble) {
        const int64_t input = call.input_order ? call.input_order[first_input + nibble] : first_input + nibble;
        const uint32_t* from = call.words + (is_of_inputs ? input / kWordNibbles : input) * call.input_stride;
        for (int i = 0; i < columns; ++i) {
            const int64_t column = first_column + i;
            const uint32_t word = from[(is_of_inputs ? column : column / kWordNibbles) * call.column_stride];
            const int shift = is_of_inputs ? 4 * static_cast<int>(input % kWordNibbles)
                                           : kColumnShifts[column % kWordNibbles];
            words[i] |= (word >> shift & 15u) << 4 * nibble;
        }
    }
}

void pack_block(const MxPackInt4Call& call, int64_t first_input, int64_t first_column, int columns, char* to) {
    const int64_t inputs = std::min<int64_t>(call.group_size, call.in_features - first_input);
    std::memset(to, 0, static_cast<size_t>(int4_block_bytes(call.group_size)));
    for (int64_t k = 0; k < inputs; k += kInt4RowDepth) {
        uint32_t words[kInt4Columns];
        gather(call, first_input + k, first_column, columns, words);
        for (int i = 0; i < columns; ++i) words[i] = arrange(words[i]);
        std::memcpy(to + k / kInt4RowDepth * kInt4RowBytes, words, sizeof(uint32_t) * static_cast<size_t>(columns));
    }
    const int64_t of_scales = first_input / call.scale_depth * call.out_features + first_column;
    std::memcpy(to + int4_scale_offset(call.group_size), call.scales + of_scales,
                sizeof(uint16_t) * static_cast<size_t>(columns));
    std::memcpy(to + int4_zero_offset(call.group_size), call.zeros + of_scales, static_cast<size_t>(columns));
}

}  // namespace
}  // namespace mx

int64_t mx_packed_int4_bytes(int32_t group_size, int64_t out_features, int64_t in_features) {
    return mx::divide_up(out_features, mx::kInt4Columns) * mx::divide_up(in_features, group_size) *
           mx::int4_block_bytes(group_size);
}

void mx_pack_int4(const MxPackInt4Call* call) {
    const int64_t panels = mx::divide_up(call->out_features, mx::kInt4Columns);
    const int64_t blocks = mx::divide_up(call->in_features, call->group_size);
    mx::Team::instance().run(panels, [&](int64_t panel) {
        const int64_t first = panel * mx::kInt4Columns;
        const int columns = static_cast<int>(std::min<int64_t>(mx::kInt4Columns, call->out_features - first));
        char* packed = static_cast<char*>(call->packed) + panel * blocks * mx::int4_block_bytes(call->group_size);
        for (int64_t block = 0; block < blocks; ++block) {
            mx::pack_block(*call, block * call->group_size, first, columns,
                           packed + block * mx::int4_block_bytes(call->group_size));
        }
    });
}
