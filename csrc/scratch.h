// A buffer that each calling thread keeps and that only grows: fresh pages on every call would cost more than the work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace mx {

class Scratch {
public:
    /// Uninitialised room for `count` elements, valid until the next call on the same thread.
    template <class T>
    T* get(int64_t count) {
        const size_t bytes = static_cast<size_t>(count) * sizeof(T);
        if (bytes > size_) {
            bytes_.reset(new std::byte[bytes + kAlignment]);
            size_ = bytes;
        }
        const uintptr_t start = reinterpret_cast<uintptr_t>(bytes_.get());
        return reinterpret_cast<T*>((start + kAlignment - 1) / kAlignment * kAlignment);
    }

private:
    static constexpr size_t kAlignment = 64;
    std::unique_ptr<std::byte[]> bytes_;
    size_t size_ = 0;
};

}  // namespace mx
