// Vectors of 2, 3 and 4 elements, componentwise.
#pragma once
#include "msim_types.h"

namespace metal {
using ::bfloat;
using ::half;
using ::uchar;
using ::uint;
using ::ushort;

template <class T, int N>
struct vec;
template <class T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  union {
    struct {
      T x, y;
    };
    struct {
      T r, g;
    };
    T v[2];
  };
  vec() = default;
  template <class U, class = std::enable_if_t<!std::is_class<U>::value || std::is_same<U, bfloat>::value>>
  vec(U s) : v{T(s), T(s)} {}
  template <class A, class B>
  vec(A a, B b) : v{T(a), T(b)} {}
  template <class U>
  explicit vec(vec<U, 2> o) : v{T(o.v[0]), T(o.v[1])} {}
  T& operator[](int i) { return v[i]; }
  const T& operator[](int i) const { return v[i]; }
};
template <class T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  union {
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    struct {
      vec<T, 2> xy;
    };
    T v[3];
  };
  vec() = default;
  template <class U, class = std::enable_if_t<!std::is_class<U>::value || std::is_same<U, bfloat>::value>>
  vec(U s) : v{T(s), T(s), T(s)} {}
  template <class A, class B, class C>
  vec(A a, B b_, C c) : v{T(a), T(b_), T(c)} {}
  template <class U>
  explicit vec(vec<U, 3> o) : v{T(o.v[0]), T(o.v[1]), T(o.v[2])} {}
  T& operator[](int i) { return v[i]; }
  const T& operator[](int i) const { return v[i]; }
};
template <class T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  union {
    struct {
      T x, y, z, w;
    };
    struct {
      T r, g, b, a;
    };
    struct {
      vec<T, 2> xy, zw;
    };
    struct {
      vec<T, 2> lo, hi;
    };
    T v[4];
  };
  vec() = default;
  template <class U, class = std::enable_if_t<!std::is_class<U>::value || std::is_same<U, bfloat>::value>>
  vec(U s) : v{T(s), T(s), T(s), T(s)} {}
  template <class A, class B, class C, class D>
  vec(A a, B b_, C c, D d) : v{T(a), T(b_), T(c), T(d)} {}
  vec(vec<T, 2> p, vec<T, 2> q) : v{p.v[0], p.v[1], q.v[0], q.v[1]} {}
  template <class U>
  explicit vec(vec<U, 4> o) : v{T(o.v[0]), T(o.v[1]), T(o.v[2]), T(o.v[3])} {}
  T& operator[](int i) { return v[i]; }
  const T& operator[](int i) const { return v[i]; }
};
#define MSIM_OP(op)                                                                                 \
  template <class T, int N>                                                                         \
  inline vec<T, N> operator op(vec<T, N> a, vec<T, N> b) {                                          \
    vec<T, N> r;                                                                                    \
    for (int i = 0; i < N; i++) r.v[i] = T(a.v[i] op b.v[i]);                                       \
    return r;                                                                                       \
  }                                                                                                 \
  template <class T, int N, class S,                                                                \
            class = std::enable_if_t<std::is_convertible<S, T>::value && !std::is_class<S>::value>> \
  inline vec<T, N> operator op(vec<T, N> a, S b) {                                                  \
    return a op vec<T, N>(T(b));                                                                    \
  }                                                                                                 \
  template <class T, int N, class S,                                                                \
            class = std::enable_if_t<std::is_convertible<S, T>::value && !std::is_class<S>::value>> \
  inline vec<T, N> operator op(S a, vec<T, N> b) {                                                  \
    return vec<T, N>(T(a)) op b;                                                                    \
  }                                                                                                 \
  template <class T, int N, class S>                                                                \
  inline vec<T, N>& operator op## = (vec<T, N> & a, S b) {                                          \
    return a = a op b;                                                                              \
  }
MSIM_OP(+)
MSIM_OP(-)
MSIM_OP(*)
MSIM_OP(/) MSIM_OP(%) MSIM_OP(&) MSIM_OP(|) MSIM_OP(^) MSIM_OP(<<) MSIM_OP(>>)
#undef MSIM_OP
#define MSIM_CMP(op)                                                                     \
  template <class T, int N>                                                              \
  inline vec<bool, N> operator op(vec<T, N> a, vec<T, N> b) {                            \
    vec<bool, N> r;                                                                      \
    for (int i = 0; i < N; i++) r.v[i] = a.v[i] op b.v[i];                               \
    return r;                                                                            \
  }                                                                                      \
  template <class T, int N, class S, class = std::enable_if_t<!std::is_class<S>::value>> \
  inline vec<bool, N> operator op(vec<T, N> a, S b) {                                    \
    return a op vec<T, N>(T(b));                                                         \
  }
    MSIM_CMP(<) MSIM_CMP(>) MSIM_CMP(<=) MSIM_CMP(>=) MSIM_CMP(==) MSIM_CMP(!=)
#undef MSIM_CMP
        template <class T, int N>
        inline vec<T, N> operator-(vec<T, N> a) {
  for (int i = 0; i < N; i++) a.v[i] = -a.v[i];
  return a;
}
template <class T, int N>
inline vec<T, N> operator~(vec<T, N> a) {
  for (int i = 0; i < N; i++) a.v[i] = ~a.v[i];
  return a;
}
template <int N>
inline vec<bool, N> operator!(vec<bool, N> a) {
  for (int i = 0; i < N; i++) a.v[i] = !a.v[i];
  return a;
}
template <int N>
inline bool any(vec<bool, N> a) {
  for (int i = 0; i < N; i++)
    if (a.v[i]) return true;
  return false;
}
template <int N>
inline bool all(vec<bool, N> a) {
  for (int i = 0; i < N; i++)
    if (!a.v[i]) return false;
  return true;
}
template <class T, int N>
inline T dot(vec<T, N> a, vec<T, N> b) {
  T s = a.v[0] * b.v[0];
  for (int i = 1; i < N; i++) s = s + a.v[i] * b.v[i];
  return s;
}
#define MSIM_VECS(T)      \
  typedef vec<T, 2> T##2; \
  typedef vec<T, 3> T##3; \
  typedef vec<T, 4> T##4;
MSIM_VECS(float);
MSIM_VECS(half);
MSIM_VECS(int);
MSIM_VECS(uint);
MSIM_VECS(ushort);
#undef MSIM_VECS

}  // namespace metal
