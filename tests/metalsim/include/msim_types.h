// Scalar types of Metal: half, and bfloat with its narrow conversions.
#pragma once
#include <cmath>
#include <limits>
#include <type_traits>
#include "msim_runtime.h"

#define METAL_FUNC inline __attribute__((always_inline))
#define kernel
#define device
#define constant
#define thread
#define threadgroup

using std::int16_t;
using std::int32_t;
using std::int64_t;
using std::int8_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef unsigned long ulong;
typedef _Float16 half;

// bfloat: widens to float implicitly; anything else needs an explicit cast, as in MSL. Arithmetic rounds to nearest
// even each time.
struct bfloat {
  uint16_t bits;
  bfloat() = default;
  struct raw_t {};
  constexpr bfloat(raw_t, uint16_t b) : bits(b) {}
  static uint16_t rnd(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 64);
    return uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
  }
  template <class T, class = std::enable_if_t<std::is_arithmetic<T>::value || std::is_same<T, half>::value>>
  explicit bfloat(T f) : bits(rnd(float(f))) {}
  operator float() const {
    uint32_t u = uint32_t(bits) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
  }
  bfloat& operator+=(bfloat o) { return *this = bfloat(float(*this) + float(o)); }
  bfloat& operator-=(bfloat o) { return *this = bfloat(float(*this) - float(o)); }
  bfloat& operator*=(bfloat o) { return *this = bfloat(float(*this) * float(o)); }
  bfloat& operator/=(bfloat o) { return *this = bfloat(float(*this) / float(o)); }
};
inline bfloat operator+(bfloat a, bfloat b) { return bfloat(float(a) + float(b)); }
inline bfloat operator-(bfloat a, bfloat b) { return bfloat(float(a) - float(b)); }
inline bfloat operator*(bfloat a, bfloat b) { return bfloat(float(a) * float(b)); }
inline bfloat operator/(bfloat a, bfloat b) { return bfloat(float(a) / float(b)); }
constexpr bfloat operator-(bfloat a) { return bfloat(bfloat::raw_t(), uint16_t(a.bits ^ 0x8000)); }
