// Which rows attend to which keys in which task: the order of work of one attention call.
//
// An item is up to 48 rows of one request; with each key/value head it is computed from its first visible key to its
// last, in one go. Two things are taken out beforehand, as prefixes, part by part:
//
//   shared   the leading blocks that several decoding requests have in common: their rows sit in one tile, and the
//            keys are read once for all of them
//   long     the whole parts of an item so long that the other threads would wait for it
//
//                  part 0       part 1       part 2
//               +------------+------------+------------+
//   request a   |pppppppppppp|ppppp|......|..          |    p: prefix, computed once for a, b and c
//   request b   |pppppppppppp|ppppp|......|            |    .: by the request's own item, which takes the states that
//   request c   |pppppppppppp|ppppp|..    |            |       the prefix left and goes on
//               +------------+------------+------------+
//
// What a row computes, and in which order, is the same with and without prefixes; the plan may depend on the number of
// threads and on the batch, the results do not.
#pragma once

#include <algorithm>
#include <vector>

#include "attention_rows.h"
#include "parallel.h"

namespace mx {

/// Keys of a part: sums over keys restart at its multiples.
constexpr int32_t kPartKeys = 1024;

/// Rows `first_row ..` of one request, which compute `keys` themselves.
struct AttentionItem {
    int32_t request;
    int32_t first_row;
    int32_t rows;
    int32_t first_position;  // of its first row
    KeyRange keys;
    int32_t prefix;      // what computes the keys before, or -1
    int32_t prefix_row;  // where its rows start there
};

/// Items whose rows compute the same keys of one block table together.
struct AttentionPrefix {
    std::vector<int32_t> items;
    int32_t rows;
    KeyRange keys;
    int64_t first_state;  // row r of part p leaves state first_state + p * rows + r, for each key/value head

    int32_t first_part() const { return keys.begin / kPartKeys; }
    int32_t parts() const { return (keys.end - 1) / kPartKeys - first_part() + 1; }
    KeyRange part_keys(int32_t part) const {
        const int32_t begin = (first_part() + part) * kPartKeys;
        return {std::max(begin, keys.begin), std::min(begin + kPartKeys, keys.end)};
    }
};

class AttentionPlan {
public:
    struct PartTask {
        int32_t prefix;
        int32_t part;
    };

    AttentionPlan(const MxGeometry& geometry, const MxStep& step, int threads);

    std::vector<AttentionItem> items;  // longest first
    std::vector<AttentionPrefix> prefixes;
    std::vector<PartTask> part_tasks;
    int64_t states = 0;  // of all prefixes, for each key/value head
    bool is_small;       // not worth waking other threads
    int heads_per_task;  // key/value heads of an item that one thread takes together: it prefetches the next

private:
    void add_items();
    void share_blocks();
    void share(const int32_t* first, const int32_t* last, int32_t keys);
    void split_long_items();
    void add_prefix(std::vector<int32_t> members, KeyRange keys);
    int32_t shared_keys(const AttentionItem& a, const AttentionItem& b) const;

    const MxGeometry& geometry_;
    const MxStep& step_;
    const int threads_;
};

}  // namespace mx
