// The plan of an attention call; what it is about stands in attention_plan.h.

#include "attention_plan.h"

namespace mx {
namespace {

constexpr int64_t kSerialProducts = 1 << 17;   // less than so many multiplications stays on the calling thread
constexpr int kTasksPerThread = 4;             // enough for threads to finish at about the same time
constexpr int32_t kMinSharedKeys = 128;        // less is not worth the states that are written and read
constexpr int32_t kMaxSharingRows = kAttentionRows / 2;

/// Time grows with keys times rows, and a few rows take as long as one: then memory decides.
int64_t cost(const AttentionItem& item) {
    return int64_t{item.keys.end - item.keys.begin} * (item.rows + 4);
}

}  // namespace

AttentionPlan::AttentionPlan(const MxGeometry& geometry, const MxStep& step, int threads)
    : geometry_(geometry), step_(step), threads_(threads) {
    add_items();
    int64_t products = 0;
    for (const AttentionItem& item : items) products += int64_t{2} * item.rows * item.keys.end * geometry.head_dim;
    is_small = products * geometry.num_kv_heads <= kSerialProducts;
    if (!is_small && geometry.sliding_window == 0) share_blocks();
    if (!is_small && threads > 1) split_long_items();
    // Numbers of items are kept by the prefixes, so the order comes last.
    std::vector<int32_t> order(items.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::stable_sort(order.begin(), order.end(),
                     [this](int32_t a, int32_t b) { return cost(items[a]) > cost(items[b]); });
    std::vector<int32_t> place(items.size());
    std::vector<AttentionItem> sorted;
    sorted.reserve(items.size());
    for (const int32_t item : order) {
        place[item] = static_cast<int32_t>(sorted.size());
        sorted.push_back(items[item]);
    }
    items.swap(sorted);
    for (AttentionPrefix& prefix : prefixes) {
        for (int32_t& item : prefix.items) item = place[item];
    }
    const int64_t units = static_cast<int64_t>(items.size()) * geometry.num_kv_heads;
    heads_per_task = static_cast<int>(
        std::clamp<int64_t>(threads > 1 ? units / (kTasksPerThread * threads) : units, 1, geometry.num_kv_heads));
}

void AttentionPlan::add_items() {
    const int group = geometry_.num_heads / geometry_.num_kv_heads;
    for (int32_t request = 0; request < step_.num_requests; ++request) {
        const int32_t queries = step_.query_start_loc[request + 1] - step_.query_start_loc[request];
        const int32_t first_position = step_.seq_lens[request] - queries;
        const int32_t rows = queries * group;
        for (int32_t row = 0; row < rows; row += kAttentionRows) {
            const int32_t count = std::min<int32_t>(kAttentionRows, rows - row);
            const int32_t position = first_position + row / group;
            const int32_t window = geometry_.sliding_window;
            const KeyRange keys{window > 0 ? std::max(0, position - window + 1) : 0,
                                first_position + (row + count - 1) / group + 1};
            items.push_back({request, row, count, position, keys, -1, 0});
        }
    }
}

/// Items of few rows, in groups that start with the same block.
void AttentionPlan::share_blocks() {
    std::vector<int32_t> candidates;
    for (size_t i = 0; i < items.size(); ++i) {
        if (items[i].rows <= kMaxSharingRows && items[i].first_row == 0 && items[i].first_position >= kMinSharedKeys) {
            candidates.push_back(static_cast<int32_t>(i));
        }
    }
    const auto first_block = [this](int32_t item) {
        return step_.block_tables[items[item].request * step_.block_table_stride];
    };
    std::stable_sort(candidates.begin(), candidates.end(),
                     [&](int32_t a, int32_t b) { return first_block(a) < first_block(b); });
    const int32_t* const end = candidates.data() + candidates.size();
    for (const int32_t* first = candidates.data(); first < end;) {
        // A request that shares less than half of what the others share would cost them more than it gains.
        int32_t keys = 0;
        const int32_t* last = first + 1;
        for (; last < end && first_block(*last) == first_block(*first); ++last) {
            const int32_t common = shared_keys(items[*first], items[*last]);
            if (common < kMinSharedKeys || common < keys / 2) break;
            keys = keys == 0 ? common : std::min(keys, common);
        }
        if (last - first > 1) share(first, last, keys);
        first = last;
    }
}

/// Whole chunks that both see completely and have in the same blocks.
int32_t AttentionPlan::shared_keys(const AttentionItem& a, const AttentionItem& b) const {
    const int32_t limit = std::min(a.first_position, b.first_position);
    const int32_t* blocks_a = step_.block_tables + a.request * step_.block_table_stride;
    const int32_t* blocks_b = step_.block_tables + b.request * step_.block_table_stride;
    const int32_t* const end = blocks_a + limit / geometry_.block_size;
    const auto common = static_cast<int32_t>(std::mismatch(blocks_a, end, blocks_b).first - blocks_a);
    return common * geometry_.block_size / kChunkKeys * kChunkKeys;
}

/// Puts the items into as few tiles as they fit in, of nearly equal height.
void AttentionPlan::share(const int32_t* first, const int32_t* last, int32_t keys) {
    int32_t rows = 0;
    for (const int32_t* item = first; item < last; ++item) rows += items[*item].rows;
    const int32_t target = static_cast<int32_t>(divide_up(rows, divide_up(rows, kAttentionRows)));
    std::vector<int32_t> members;
    int32_t taken = 0;
    for (; first < last; ++first) {
        const int32_t next = items[*first].rows;
        if (taken + next > kAttentionRows || taken >= target) {
            add_prefix(std::move(members), {0, keys});
            members.clear();
            taken = 0;
        }
        members.push_back(*first);
        taken += next;
    }
    add_prefix(std::move(members), {0, keys});
}

void AttentionPlan::split_long_items() {
    int64_t total = 0;
    for (const AttentionItem& item : items) total += cost(item) * geometry_.num_kv_heads;
    for (size_t i = 0; i < items.size(); ++i) {
        const AttentionItem& item = items[i];
        const KeyRange keys{item.keys.begin, item.keys.end / kPartKeys * kPartKeys};
        if (item.prefix < 0 && keys.end > keys.begin && cost(item) * kTasksPerThread * threads_ > total) {
            add_prefix({static_cast<int32_t>(i)}, keys);
        }
    }
}

void AttentionPlan::add_prefix(std::vector<int32_t> members, KeyRange keys) {
    const auto number = static_cast<int32_t>(prefixes.size());
    int32_t rows = 0;
    for (const int32_t member : members) {
        AttentionItem& item = items[member];
        item.prefix = number;
        item.prefix_row = rows;
        item.keys.begin = keys.end;
        rows += item.rows;
    }
    prefixes.push_back({std::move(members), rows, keys, states});
    const int32_t parts = prefixes.back().parts();
    states += int64_t{parts} * rows;
    for (int32_t part = 0; part < parts; ++part) part_tasks.push_back({number, part});
}

}  // namespace mx
