// metal_check.h: front-end check of MSL with real address spaces, by clang's C++ for OpenCL (no code is run).
//   clang -x cl -cl-std=clc++2021 -target spir64 -Xclang -finclude-default-header
//   -cl-ext=-__opencl_c_generic_address_space,+cl_khr_fp16 -fsyntax-only
// With the generic space off, an unqualified pointer is thread-private, as in MSL: passing a device or threadgroup
// pointer to it is an error.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define device __global
#undef constant
#define constant __constant
#define threadgroup __local
#define thread __private
#define METAL_FUNC inline
#define as_type as_type_fn
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef ulong uint64_t;
typedef char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef half float16_t;
struct bfloat {  // explicit from anything, implicit only to float
  ushort bits;
  bfloat() = default;
  explicit bfloat(float f) {
    uint u = __builtin_astype(f, uint);
    bits = (ushort)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
  }
#define MC_AS(A)                                                                 \
  bfloat(const A bfloat& o) : bits(o.bits) {}                                    \
  operator float() const A { return __builtin_astype((uint)bits << 16, float); } \
  void operator=(bfloat o) A { bits = o.bits; }
  MC_AS(__global) MC_AS(__local) MC_AS(__private)
#undef MC_AS
};
typedef bfloat bfloat16_t;
namespace metal {
template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));
template <class To, class From>
To as_type_fn(From f) {
  return __builtin_astype(f, To);
}
template <class T, class U>
struct is_same {
  static constexpr __constant bool value = false;
};
template <class T>
struct is_same<T, T> {
  static constexpr __constant bool value = true;
};
#define MC1(n)      \
  float n(float);   \
  half n(half);     \
  float2 n(float2); \
  float4 n(float4); \
  half4 n(half4);
#define MC2(n)              \
  float n(float, float);    \
  half n(half, half);       \
  float4 n(float4, float4); \
  half4 n(half4, half4);
namespace fn {
MC1(exp)
MC1(exp2)
MC1(log)
MC1(log2) MC1(sqrt) MC1(rsqrt) MC1(sin) MC1(cos) MC1(tanh) MC1(floor) MC1(ceil) MC1(round) MC1(rint) MC1(trunc)
    MC1(fabs) MC1(abs) MC1(sign) MC2(pow) MC2(fmod) MC2(min) MC2(max) MC2(fmin) MC2(fmax) int min(int, int);
int max(int, int);
uint min(uint, uint);
uint max(uint, uint);
int abs(int);
int clamp(int, int, int);
uint clamp(uint, uint, uint);
float clamp(float, float, float);
half clamp(half, half, half);
float fma(float, float, float);
half fma(half, half, half);
float4 fma(float4, float4, float4);
float dot(float4, float4);
half dot(half4, half4);
float dot(float2, float2);
template <class T>
T select(T, T, bool);
template <class T>
T popcount(T);
template <class T>
T clz(T);
template <class T>
T ctz(T);
uint extract_bits(uint, uint, uint);
bool isnan(float);
bool isinf(float);
}  // namespace fn
using namespace fn;
namespace fast {
using namespace fn;
}
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
// the standard library takes no bfloat: an argument would widen to float
#define MCS(n)      \
  float n(float);   \
  half n(half);     \
  int n(int);       \
  uint n(uint);     \
  float2 n(float2); \
  float4 n(float4); \
  uint2 n(uint2);
#define MCS2(n)             \
  float n(float, ushort);   \
  half n(half, ushort);     \
  int n(int, ushort);       \
  uint n(uint, ushort);     \
  float2 n(float2, ushort); \
  float4 n(float4, ushort);
MCS(simd_sum)
MCS(simd_max)
MCS(simd_min)
MCS(simd_product) MCS(simd_prefix_exclusive_sum) MCS(simd_prefix_inclusive_sum) MCS(simd_broadcast_first) MCS(quad_sum)
    MCS(quad_max) MCS(quad_min) uint simd_or(uint);
uint simd_and(uint);
uint simd_xor(uint);
MCS2(simd_shuffle)
MCS2(simd_broadcast)
MCS2(simd_shuffle_xor)
MCS2(simd_shuffle_up) MCS2(simd_shuffle_down) MCS2(quad_shuffle_xor) MCS2(quad_broadcast) struct simd_vote {
  ulong v;
  explicit operator ulong() const { return v; }
};
simd_vote simd_ballot(bool);
bool simd_any(bool);
bool simd_all(bool);
bool simd_is_first();
template <class T>
struct atomic {
  T v;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
enum memory_order { memory_order_relaxed };
#define MCA(n)                               \
  template <class T, class U>                \
  T n(__global atomic<T>*, U, memory_order); \
  template <class T, class U>                \
  T n(__local atomic<T>*, U, memory_order);
MCA(atomic_fetch_add_explicit)
MCA(atomic_fetch_sub_explicit)
MCA(atomic_fetch_max_explicit)
MCA(atomic_fetch_min_explicit) MCA(atomic_fetch_or_explicit) MCA(atomic_fetch_and_explicit) MCA(atomic_store_explicit)
    MCA(atomic_exchange_explicit) template <class T>
    T atomic_load_explicit(const __global atomic<T>*, memory_order);
template <class T, int R, int C>
struct simdgroup_matrix {
  T e[2];
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T);
  __private T* thread_elements() __private { return e; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
template <class T, int R, int C>
simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T);
#define MCM(A)                                                                                                      \
  template <class T>                                                                                                \
  void simdgroup_load(__private simdgroup_matrix<T, 8, 8>&, const A T*, ulong, ulong2 = (ulong2)(0), bool = false); \
  template <class T>                                                                                                \
  void simdgroup_store(simdgroup_matrix<T, 8, 8>, A T*, ulong, ulong2 = (ulong2)(0), bool = false);
MCM(__global)
MCM(__local)
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(__private simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>,
                                   simdgroup_matrix<B, 8, 8>, simdgroup_matrix<C, 8, 8>);
}  // namespace metal
template <class T, class U>
T ceildiv(T n, U m) {
  return (n + m - 1) / m;
}
