// simdgroup_matrix, 8 x 8: lane l holds elements (r, c) and (r, c + 1) in Apple's layout.
#pragma once
#include "msim_simd.h"

namespace metal {
template <class T, int R, int C>
struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "simdgroup matrices are 8 x 8");
  vec<T, 2> elements;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T x) : elements(x, x) {}
  vec<T, 2>& thread_elements() { return elements; }
  static int row(unsigned lane) { return int(((lane / 4) & 4) + (lane / 2) % 4); }
  static int column(unsigned lane) { return int(((lane / 4) & 2) * 2 + (lane % 2) * 2); }
};

template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                          simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c) {
  typedef simdgroup_matrix<A, 8, 8> M;
  struct Pair {
    vec<A, 2> a;
    vec<B, 2> b;
  } mine{a.elements, b.elements};
  unsigned me = msim::rt().cur->lane;
  auto& group = msim::meet(msim::K_MATRIX, mine);
  float left[8][8], right[8][8];
  for (unsigned lane = 0; lane < 32; lane++) {
    Pair theirs;
    memcpy((void*)&theirs, group.snap[lane], sizeof theirs);
    for (int k = 0; k < 2; k++) {
      left[M::row(lane)][M::column(lane) + k] = float(theirs.a.v[k]);
      right[M::row(lane)][M::column(lane) + k] = float(theirs.b.v[k]);
    }
  }
  for (int k = 0; k < 2; k++) {
    float sum = float(c.elements.v[k]);
    for (int i = 0; i < 8; i++) sum += left[M::row(me)][i] * right[i][M::column(me) + k];
    d.elements.v[k] = D(sum);
  }
}
}  // namespace metal
