// Barriers and simdgroup functions: every lane of a simdgroup meets the others here.
#pragma once
#include "msim_math.h"

namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
inline void threadgroup_barrier(mem_flags) { msim::tg_barrier(); }
inline void simdgroup_barrier(mem_flags) { msim::sg_barrier(); }

template <class T>
inline T msim_value(msim::SG& group, unsigned lane) {
  T value;
  memcpy((void*)&value, group.snap[lane], sizeof value);
  return value;
}

// A tree over the lanes that take part; Apple does not say in which order its own adds.
template <class T, class F>
inline T msim_reduce(msim::Kind kind, T mine, F combine) {
  auto& group = msim::meet(kind, mine);
  T value[32];
  bool there[32];
  for (unsigned l = 0; l < 32; l++) {
    there[l] = group.mask >> l & 1u;
    if (there[l]) value[l] = msim_value<T>(group, l);
  }
  for (unsigned s = 16; s; s >>= 1)
    for (unsigned l = 0; l < s; l++)
      if (there[l + s]) {
        value[l] = there[l] ? T(combine(value[l], value[l + s])) : value[l + s];
        there[l] = true;
      }
  return value[0];
}
template <class T>
inline T simd_sum(T v) {
  return msim_reduce(msim::K_SUM, v, [](T a, T b) { return a + b; });
}
template <class T>
inline T simd_max(T v) {
  return msim_reduce(msim::K_MAX, v, [](T a, T b) { return max(a, b); });
}

// A lane that does not take part reads as NaN, or all ones.
template <class T>
inline T simd_shuffle(T v, ushort lane) {
  return msim_value<T>(msim::meet(msim::K_SHUF, v), lane & 31u);
}
template <class T>
inline T simd_shuffle_xor(T v, ushort mask) {
  unsigned from = (msim::rt().cur->lane ^ mask) & 31u;
  return msim_value<T>(msim::meet(msim::K_SHUF, v), from);
}
}  // namespace metal
