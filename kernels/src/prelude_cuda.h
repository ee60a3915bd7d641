// The Metal names that kernel bodies use, for CUDA: qualifiers, attributes, simdgroup functions.
#define device
#define constant
#define thread
#define threadgroup __shared__
#define TG(T) T*
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef __half half;
typedef __half2 half2;
typedef __half float16_t;
typedef __nv_bfloat16 bfloat16_t;

#define thread_position_in_threadgroup threadIdx
#define threadgroup_position_in_grid blockIdx
#define threads_per_threadgroup blockDim
#define threadgroups_per_grid gridDim
#define thread_index_in_threadgroup (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z))
#define thread_index_in_simdgroup (thread_index_in_threadgroup & 31u)
#define simdgroup_index_in_threadgroup (thread_index_in_threadgroup >> 5)
#define simdgroups_per_threadgroup ((blockDim.x * blockDim.y * blockDim.z + 31u) >> 5)

struct mem_flags { enum kind { mem_none, mem_device, mem_threadgroup }; };
#define threadgroup_barrier(flags) __syncthreads()
#define simdgroup_barrier(flags) __syncwarp()
template <class T> T simd_shuffle(T v, ushort lane) { return __shfl_sync(~0u, v, lane); }
template <class T> T simd_shuffle_xor(T v, ushort mask) { return __shfl_xor_sync(~0u, v, mask); }
template <class T> T simd_sum(T v) {
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}
template <class T> T simd_max(T v) {
  for (int o = 16; o; o >>= 1) { T u = __shfl_xor_sync(~0u, v, o); v = u > v ? u : v; }
  return v;
}
template <class To, class From> To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
namespace metal {
inline float exp(float x) { return expf(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float log2(float x) { return log2f(x); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
}

template <int V> struct word_run { uint word[V]; };
inline void load_words(const uint* p, word_run<1>& run) { run.word[0] = p[0]; }
inline void load_words(const uint* p, word_run<2>& run) {
  uint2 v = *(const uint2*)p;
  run.word[0] = v.x; run.word[1] = v.y;
}
inline void load_words(const uint* p, word_run<4>& run) {
  uint4 v = *(const uint4*)p;
  run.word[0] = v.x; run.word[1] = v.y; run.word[2] = v.z; run.word[3] = v.w;
}

inline float half_low(uint word) { return __low2float(as_type<__half2>(word)); }
inline float half_high(uint word) { return __high2float(as_type<__half2>(word)); }

// (word & mask) | set in one instruction; left to itself the compiler takes two, at half the rate of a multiply-add.
inline uint keep_and_set(uint word, uint mask, uint set) {
  uint out;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(word), "r"(mask), "r"(set));
  return out;
}
