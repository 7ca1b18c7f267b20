// Paged causal attention with online softmax: decode, chunked prefill and mixed batches in one kernel.
//
// The queries of one request that share a key/value head form rows, token by token, head by head; up to 48 such rows
// make a tile. Keys are visited in chunks of 64, always counted from key 0:
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
// 16 chunks make a part. m, l and O restart with every part, and parts are added in ascending order, each weighed by
// exp of its m; so parts can be computed by several threads, and once for several requests (attention_plan.h).
//
// A row's parts and chunks, and the order of every sum in them, depend on its own position only. A chunk or a key that
// other rows of the tile need and this row does not see adds exact zeros to it. So a row's result is the same to the
// last bit however the prompt was cut, whatever shares the tile or the batch, and on any number of threads.

#include "attention_int8.h"
#include "attention_plain.h"
#include "attention_plan.h"
#include "dispatch.h"
#include "parallel.h"
#include "scratch.h"

namespace mx {
namespace {

/// `Rows` is how a tile of rows attends: PlainAttention or Int8Attention.
template <class T, class Rows>
struct PagedAttention {
    const MxGeometry& geometry;
    const MxStep& step;
    const T* qkv;
    int64_t qkv_stride;
    const char* key_cache;
    const char* value_cache;
    T* out;
    int64_t out_stride;

    void run() const {
        static thread_local Scratch scratch;
        const AttentionPlan plan(geometry, step, Team::instance().size());
        const int heads = geometry.num_kv_heads;
        float* states = scratch.get<float>(plan.states * heads * Rows::state_floats(geometry.head_dim));
        parallel_tasks(static_cast<int64_t>(plan.part_tasks.size()), heads, plan.part_tasks.empty(),
                       [&](int64_t task, int64_t head) {
                           run_part(plan, plan.part_tasks[task], static_cast<int32_t>(head), states);
                       });
        const int64_t head_runs = divide_up(heads, plan.heads_per_task);
        parallel_tasks(static_cast<int64_t>(plan.items.size()), head_runs, plan.is_small,
                       [&](int64_t item, int64_t head_run) {
                           const auto first = static_cast<int32_t>(head_run * plan.heads_per_task);
                           const int32_t last = std::min(first + plan.heads_per_task, heads);
                           run_item(plan, plan.items[item], first, last, states);
                       });
    }

    /// Computes one part of a prefix for one key/value head, and leaves the rows' states in `states`.
    void run_part(const AttentionPlan& plan, AttentionPlan::PartTask task, int32_t head, float* states) const {
        const AttentionPrefix& prefix = plan.prefixes[task.prefix];
        const KeyRange keys = prefix.part_keys(task.part);
        const int32_t request = plan.items[prefix.items[0]].request;
        Rows tile(geometry, prefix.rows);
        for (const int32_t item : prefix.items) load_rows(plan.items[item], plan.items[item].prefix_row, head, tile);
        visit_keys(request, head, keys, nullptr, tile);
        for (int r = 0; r < prefix.rows; ++r) tile.save_part(r, state(states, prefix, task.part, r, head));
    }

    /// Computes an item for the key/value heads `first_head .. last_head - 1`.
    void run_item(const AttentionPlan& plan, const AttentionItem& item, int32_t first_head, int32_t last_head,
                  float* states) const {
        for (int32_t head = first_head; head < last_head; ++head) {
            Rows tile(geometry, item.rows);
            load_rows(item, 0, head, tile);
            if (item.prefix >= 0) load_parts(plan.prefixes[item.prefix], item, head, states, tile);
            if (item.keys.begin < item.keys.end) {
                const bool is_last = head + 1 == last_head;
                const Chunk following = first_chunk(item.request, is_last ? head : head + 1, item.keys);
                visit_keys(item.request, head, item.keys, is_last ? nullptr : &following, tile);
            }
            tile.finish();
            for (int r = 0; r < item.rows; ++r) tile.store_row(r, out + row_offset(item, r, head, out_stride));
        }
    }

    void load_rows(const AttentionItem& item, int first, int32_t head, Rows& tile) const {
        const int group = geometry.num_heads / geometry.num_kv_heads;
        for (int r = 0; r < item.rows; ++r) {
            const int32_t position = item.first_position + (item.first_row % group + r) / group;
            tile.load_row(first + r, qkv + row_offset(item, r, head, qkv_stride), position);
        }
    }

    int64_t row_offset(const AttentionItem& item, int r, int32_t head, int64_t stride) const {
        const int group = geometry.num_heads / geometry.num_kv_heads;
        const int row = item.first_row + r;
        return (step.query_start_loc[item.request] + row / group) * stride +
               (head * group + row % group) * geometry.head_dim;
    }

    /// Takes what the item's prefix computed, and starts a new part where the prefix ended with a whole one.
    void load_parts(const AttentionPrefix& prefix, const AttentionItem& item, int32_t head, float* states,
                    Rows& tile) const {
        for (int32_t part = 0; part < prefix.parts(); ++part) {
            if (part > 0) tile.next_part();
            for (int r = 0; r < item.rows; ++r) {
                tile.load_part(r, state(states, prefix, part, item.prefix_row + r, head));
            }
        }
        if (item.keys.begin < item.keys.end && item.keys.begin % kPartKeys == 0) tile.next_part();
    }

    float* state(float* states, const AttentionPrefix& prefix, int32_t part, int row, int32_t head) const {
        const int64_t number = prefix.first_state + int64_t{part} * prefix.rows + row;
        return states + (number * geometry.num_kv_heads + head) * Rows::state_floats(geometry.head_dim);
    }

    /// Adds `keys` to all rows; `following` is what will be visited next, to prefetch, or null.
    void visit_keys(int32_t request, int32_t head, KeyRange keys, const Chunk* following, Rows& tile) const {
        Chunk chunk = first_chunk(request, head, keys);
        for (bool is_last = false; !is_last;) {
            const int32_t next_key = chunk.first_key + kChunkKeys;
            is_last = next_key >= keys.end;
            const Chunk next = is_last ? chunk : locate(request, head, next_key, keys);
            tile.add_chunk(chunk, is_last ? following : &next);
            if (!is_last && next_key % kPartKeys == 0) tile.next_part();
            chunk = next;
        }
    }

    Chunk first_chunk(int32_t request, int32_t head, KeyRange keys) const {
        return locate(request, head, keys.begin / kChunkKeys * kChunkKeys, keys);
    }

    /// The four groups of the chunk that starts at `first_key`. A group without a visible key is replaced by one with,
    /// so that block tables are not read past their end and skipped blocks are not touched.
    Chunk locate(int32_t request, int32_t head, int32_t first_key, KeyRange keys) const {
        const int32_t* table = step.block_tables + request * step.block_table_stride;
        Chunk chunk;
        chunk.first_key = first_key;
        chunk.visible = {std::max(keys.begin, first_key), std::min(keys.end, first_key + kChunkKeys)};
        const int first = (chunk.visible.begin - first_key) / kGroupTokens;
        const int last = (chunk.visible.end - 1 - first_key) / kGroupTokens;
        int32_t block = (first_key + first * kGroupTokens) / geometry.block_size;
        int32_t position = (first_key + first * kGroupTokens) % geometry.block_size;
        for (int g = first; g <= last; ++g, position += kGroupTokens) {
            if (position == geometry.block_size) {
                position = 0;
                ++block;
            }
            const int64_t group = group_index(geometry, table[block], head, position);
            chunk.keys[g] = key_cache + group * Rows::Format::key_bytes(geometry.head_dim);
            chunk.values[g] = value_cache + group * Rows::Format::value_bytes(geometry.head_dim);
        }
        for (int g = 0; g < first; ++g) copy_group(chunk, first, g);
        for (int g = last + 1; g < kChunkGroups; ++g) copy_group(chunk, last, g);
        return chunk;
    }

    static void copy_group(Chunk& chunk, int from, int to) {
        chunk.keys[to] = chunk.keys[from];
        chunk.values[to] = chunk.values[from];
    }
};

template <class Rows, class T>
void paged_attention(const MxPagedAttentionCall& call, const T* qkv) {
    const PagedAttention<T, Rows> kernel{*call.geometry,
                                         *call.step,
                                         qkv,
                                         call.qkv_stride,
                                         static_cast<const char*>(call.key_cache),
                                         static_cast<const char*>(call.value_cache),
                                         static_cast<T*>(call.out),
                                         call.out_stride};
    kernel.run();
}

}  // namespace
}  // namespace mx

void mx_paged_attention(const MxPagedAttentionCall* call) {
    mx::dispatch(call->dtype, [&](auto element) {
        using T = decltype(element);
        const T* qkv = static_cast<const T*>(call->qkv);
        if (call->geometry->kv_format == MX_KV_INT8) {
            mx::paged_attention<mx::Int8Attention>(*call, qkv);
        } else {
            mx::paged_attention<mx::PlainAttention<T>>(*call, qkv);
        }
    });
}
