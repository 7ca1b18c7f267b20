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

/// Calls `function(T{}, Out{})`, where Out is T or float.
template <class Function>
inline void dispatch_output(int32_t dtype, bool is_fp32, Function function) {
    dispatch(dtype, [&](auto element) {
        if (is_fp32) {
            function(element, float{});
        } else {
            function(element, element);
        }
    });
}

}  // namespace mx
