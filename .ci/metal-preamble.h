// What MLX puts before a kernel's text, as far as the listing needs it, so that Apple's compiler takes the listing alone.
#include <metal_stdlib>
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
using namespace metal;
typedef half float16_t;
typedef bfloat bfloat16_t;
