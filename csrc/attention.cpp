// Paged causal attention with online softmax: decode, chunked prefill and mixed batches in one kernel.
//
// The queries of one request that share a key/value head form rows, token by token, head by head; a work item is a tile
// of up to 48 such rows over all keys they may see. Keys are visited in chunks of 64, always counted from key 0:
//
//                     keys of the request ->
//              0          64         128        192
//              +----------+----------+----------+
//   row 0      |##########|##########|###.......|        # visible   . masked (causal or window)
//   row 1      |##########|##########|####......|
//   ...        +----------+----------+----------+
//
//   per chunk:  S = q k^T * scale        tile product over head_dim          (6 rows x 64 keys)
//               m, l, P = softmax so far; masked scores are -inf and give exactly 0
//               O = O * exp(m_old - m_new) + P v                             (6 rows x 64 dimensions)
//
// A row's chunks, and the order of every sum in them, depend on its own position only. A chunk or a key that other rows
// of the tile need and this row does not see adds exact zeros to it. So a row's result is the same to the last bit
// however the prompt was cut, whatever shares the tile or the batch, and on any number of threads.

#include <algorithm>
#include <vector>

#include "attention_tile.h"
#include "dispatch.h"
#include "parallel.h"

namespace mx {
namespace {

constexpr int64_t kSerialProducts = 1 << 17;  // less than so many multiplications stays on the calling thread

/// Rows `first_row ..` of one request; with each key/value head they make one task.
struct WorkItem {
    int32_t request;
    int32_t first_row;
    int32_t rows;
    int32_t end_key;
};

/// Longest first, so that no thread starts a long item when the others are done.
std::vector<WorkItem> plan(const MxGeometry& geometry, const MxStep& step) {
    const int group = geometry.num_heads / geometry.num_kv_heads;
    std::vector<WorkItem> items;
    for (int32_t request = 0; request < step.num_requests; ++request) {
        const int32_t queries = step.query_start_loc[request + 1] - step.query_start_loc[request];
        const int32_t first_key = step.seq_lens[request] - queries;
        const int32_t rows = queries * group;
        for (int32_t row = 0; row < rows; row += kAttentionRows) {
            const int32_t count = std::min<int32_t>(kAttentionRows, rows - row);
            items.push_back({request, row, count, first_key + (row + count - 1) / group + 1});
        }
    }
    std::stable_sort(items.begin(), items.end(),
                     [](const WorkItem& a, const WorkItem& b) { return a.end_key > b.end_key; });
    return items;
}

template <class T>
struct PagedAttention {
    const MxGeometry& geometry;
    const MxStep& step;
    const T* qkv;
    int64_t qkv_stride;
    const T* key_cache;
    const T* value_cache;
    T* out;
    int64_t out_stride;

    void run() const {
        const std::vector<WorkItem> items = plan(geometry, step);
        int64_t products = 0;
        for (const WorkItem& item : items) products += int64_t{2} * item.rows * item.end_key * geometry.head_dim;
        const bool is_small = products * geometry.num_kv_heads <= kSerialProducts;
        parallel_tasks(static_cast<int64_t>(items.size()), geometry.num_kv_heads, is_small,
                       [&](int64_t item, int64_t head) { run_item(items[item], static_cast<int32_t>(head)); });
    }

    void run_item(const WorkItem& item, int32_t kv_head) const {
        const int group = geometry.num_heads / geometry.num_kv_heads;
        const int32_t first_token = step.query_start_loc[item.request];
        const int32_t queries = step.query_start_loc[item.request + 1] - first_token;
        const int32_t first_position = step.seq_lens[item.request] - queries;
        const auto row_offset = [&](int r, int64_t stride) {
            const int row = item.first_row + r;
            return (first_token + row / group) * stride + (kv_head * group + row % group) * geometry.head_dim;
        };
        AttentionTile<T> tile(geometry.head_dim, geometry.scale, item.rows);
        for (int r = 0; r < item.rows; ++r) {
            const int32_t position = first_position + (item.first_row + r) / group;
            tile.load_row(r, qkv + row_offset(r, qkv_stride), position, geometry.sliding_window);
        }
        visit_keys(item, kv_head, tile);
        for (int r = 0; r < item.rows; ++r) tile.store_row(r, out + row_offset(r, out_stride));
    }

    void visit_keys(const WorkItem& item, int32_t kv_head, AttentionTile<T>& tile) const {
        const KeyRange keys{tile.first_visible_key(), item.end_key};
        const int32_t first_chunk = keys.begin / kChunkKeys * kChunkKeys;
        Chunk<T> chunk = locate(item.request, kv_head, first_chunk, keys);
        for (int32_t key = first_chunk; key < keys.end; key += kChunkKeys) {
            const bool is_last = key + kChunkKeys >= keys.end;
            const Chunk<T> next = is_last ? chunk : locate(item.request, kv_head, key + kChunkKeys, keys);
            tile.add_chunk(chunk, is_last ? nullptr : &next);
            chunk = next;
        }
    }

    /// The four groups of the chunk that starts at `first_key`. A group without a visible key is replaced by one with,
    /// so that block tables are not read past their end and skipped blocks are not touched.
    Chunk<T> locate(int32_t request, int32_t kv_head, int32_t first_key, KeyRange keys) const {
        const int32_t* table = step.block_tables + request * step.block_table_stride;
        Chunk<T> chunk;
        chunk.first_key = first_key;
        chunk.visible = {std::max(keys.begin, first_key), std::min(keys.end, first_key + kChunkKeys)};
        for (int g = 0; g < kChunkGroups; ++g) {
            const int32_t wanted = first_key + g * kGroupTokens;
            const int32_t key = std::clamp(wanted, chunk.visible.begin, chunk.visible.end - 1);
            const int32_t block = table[key / geometry.block_size];
            const int64_t offset = group_offset(geometry, block, kv_head, key % geometry.block_size);
            chunk.keys[g] = key_cache + offset;
            chunk.values[g] = value_cache + offset;
        }
        return chunk;
    }
};

}  // namespace
}  // namespace mx

void mx_paged_attention(const MxPagedAttentionCall* call) {
    mx::dispatch(call->dtype, [&](auto element) {
        using T = decltype(element);
        const mx::PagedAttention<T> kernel{*call->geometry,
                                           *call->step,
                                           static_cast<const T*>(call->qkv),
                                           call->qkv_stride,
                                           static_cast<const T*>(call->key_cache),
                                           static_cast<const T*>(call->value_cache),
                                           static_cast<T*>(call->out),
                                           call->out_stride};
        kernel.run();
    });
}
