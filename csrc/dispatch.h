// From a dtype code of the C interface to a template's element type.
#pragma once

#include "elements.h"
#include "kernels.h"

namespace mx {

/// Calls `function(T{})` with the element type that `dtype` names.
template <class Function>
inline auto dispatch(int32_t dtype, Function function) {
    switch (dtype) {
        case MX_BF16: return function(Bf16{});
        case MX_FP16: return function(Fp16{});
        default: return function(float{});
    }
}

}  // namespace mx
