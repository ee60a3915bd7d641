// as_type and the scalar mathematics of Metal that both back-ends have.
#pragma once
#include "msim_vector.h"

namespace metal {
template <class To, class From>
inline To as_type(const From& f) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To t;
  memcpy((void*)&t, (const void*)&f, sizeof t);
  return t;
}

#define MSIM_UNARY(name, expr)                              \
  inline float name(float x) { return expr; }               \
  inline half name(half v) { return half(name(float(v))); } \
  inline bfloat name(bfloat v) { return bfloat(name(float(v))); }
MSIM_UNARY(exp, ::expf(x));
MSIM_UNARY(exp2, ::exp2f(x));
MSIM_UNARY(log, ::logf(x));
MSIM_UNARY(log2, ::log2f(x));
MSIM_UNARY(sqrt, ::sqrtf(x));
MSIM_UNARY(rsqrt, 1.0f / ::sqrtf(x));
MSIM_UNARY(sin, ::sinf(x));
MSIM_UNARY(cos, ::cosf(x));
MSIM_UNARY(tanh, ::tanhf(x));
MSIM_UNARY(abs, ::fabsf(x));
#undef MSIM_UNARY

inline float min(float a, float b) { return ::fminf(a, b); }
inline float max(float a, float b) { return ::fmaxf(a, b); }
#define MSIM_ORDER(T)                              \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
MSIM_ORDER(int);
MSIM_ORDER(uint);
#undef MSIM_ORDER

inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
inline half fma(half a, half b, half c) { return half(::fma(double(float(a)), double(float(b)), double(float(c)))); }
namespace precise {
using namespace metal;
}
namespace fast {
using namespace metal;
}
}  // namespace metal
