// Matrix products for the kernel bodies, for CUDA: the names of matrices_metal.h on tensor cores.

// The tensor cores take weights in the type of the input: bfloat16 has 7 bits of mantissa to write into.
template <typename T> struct mantissa { enum { bits = 10, bias = 15 }; };
template <> struct mantissa<__nv_bfloat16> { enum { bits = 7, bias = 127 }; };
template <typename T> struct weight_pair { uint v; };
template <typename T> inline weight_pair<T> fma_pair(uint pair, uint scale, uint offset) {
  return {as_type<uint>(__hfma2(as_type<__half2>(pair), as_type<__half2>(scale), as_type<__half2>(offset)))};
}
template <> inline weight_pair<__nv_bfloat16> fma_pair<__nv_bfloat16>(uint pair, uint scale, uint offset) {
  typedef __nv_bfloat162 two;
  return {as_type<uint>(__hfma2(as_type<two>(pair), as_type<two>(scale), as_type<two>(offset)))};
}

// Matrix tiles, as in matrices_metal.h, in the register layout of mma.m16n8k16 (PTX ISA, "Matrix fragments").
inline uint tile_output(uint lane) { return lane >> 2; }
inline uint tile_word(uint lane) { return lane & 3u; }
inline uint tile_row(uint lane) { return 2u * (lane & 3u); }
inline ushort tile_apart(uint words) { return words; }

// A lane's share of the input under 4 words: weights j and j + 8 of its word side by side, as they come out of a word, for
// one of 8 columns, as in matrices_metal.h.
template <typename T> struct tile_x { uint pair[8]; };

template <typename T> inline void tile_of(tile_x<T>& tile, uint4 low, uint4 high) {
  tile.pair[0] = __byte_perm(low.x, high.x, 0x5410); tile.pair[1] = __byte_perm(low.x, high.x, 0x7632);
  tile.pair[2] = __byte_perm(low.y, high.y, 0x5410); tile.pair[3] = __byte_perm(low.y, high.y, 0x7632);
  tile.pair[4] = __byte_perm(low.z, high.z, 0x5410); tile.pair[5] = __byte_perm(low.z, high.z, 0x7632);
  tile.pair[6] = __byte_perm(low.w, high.w, 0x5410); tile.pair[7] = __byte_perm(low.w, high.w, 0x7632);
}

template <typename T, int ROWS, int PARTS>
inline void tile_load(tile_x<T>& tile, const T* x, uint apart, uint k, uint rows, uint first, uint lane) {
  const uint column = first + (lane >> 2), row = column % ROWS, word = lane & 3u;
  uint4 low = {0, 0, 0, 0}, high = {0, 0, 0, 0};
  if (row < rows && column / ROWS == word * PARTS / 4u) {
    const uint4* from = (const uint4*)(x + row * k + word * apart);
    low = from[0];
    high = from[1];
  }
  tile_of(tile, low, high);
}

// The 128 bytes of each of 4 lanes under 4 words. Read by every lane for itself those of 8 rows are in 32 lines of the cache
// at a time; so the four lanes read from one line together, and change places after that.
template <typename T, int ROWS, int MATRICES>
inline void tile_load_spread(tile_x<T>* tiles, const T* x, uint k, uint rows, uint first, uint lane) {
  const uint column = first + (lane >> 2), word = lane & 3u;
  const bool is_row = column < ROWS && column < rows;
  const uint4* from = (const uint4*)(x + (is_row ? column : 0u) * k);
  uint4 piece[4][2];
#pragma unroll
  for (int i = 0; i < 8; i++) piece[i / 2][i % 2] = from[4 * i + word];
#pragma unroll
  for (int apart = 1; apart < 4; apart *= 2) {
    const bool later = (word & uint(apart)) != 0u;
#pragma unroll
    for (int p = 0; p < 4; p++)
      if (!(p & apart))
#pragma unroll
        for (int i = 0; i < 8; i++) {
          uint &here = ((uint*)piece[p])[i], &there = ((uint*)piece[p + apart])[i];
          const uint got = __shfl_xor_sync(~0u, later ? here : there, apart);
          if (later) here = got;
          else there = got;
        }
  }
  // 16 bytes i of a lane's 128 are in half i / 4 of piece i % 4 now.
#pragma unroll
  for (int v = 0; v < 4; v++) {
    uint4 low = piece[2 * v % 4][2 * v / 4], high = piece[(2 * v + 1) % 4][(2 * v + 1) / 4];
    if (!is_row) low = high = {0, 0, 0, 0};
    tile_of(tiles[v * MATRICES], low, high);
  }
}

template <typename T, int ROWS, int PARTS, int RUN, int MATRICES>
inline void tile_load_run(tile_x<T>* tiles, const T* x, uint k, uint rows, uint first, uint lane) {
  if constexpr (RUN == 4 && PARTS == 1 && ROWS >= 8) {
    tile_load_spread<T, ROWS, MATRICES>(tiles, x, k, rows, first, lane);
  } else {
#pragma unroll
    for (int v = 0; v < RUN; v++)
      tile_load<T, ROWS, PARTS>(tiles[v * MATRICES], x + 16u * v, 16u * RUN, k, rows, first, lane);
  }
}

template <typename T> struct tile_type { enum { bfloat = 0 }; };
template <> struct tile_type<__nv_bfloat16> { enum { bfloat = 1 }; };

#define MMA(TYPE)                                                                                   \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                       \
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                              \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                             \
               : "r"(low[0].v), "r"(high[0].v), "r"(low[1].v), "r"(high[1].v), "r"(tile.pair[j]), "r"(tile.pair[j + 1]))
template <typename T>
inline void tile_multiply(float* sum, weight_pair<T>* low, weight_pair<T>* high, tile_x<T>& tile, uint j) {
  if constexpr (tile_type<T>::bfloat) MMA("bf16");
  else MMA("f16");
}
#undef MMA

template <typename T> struct alignas(16) run_8 { T value[8]; };

template <typename T> inline void load_8(const T* p, run_8<T>& run) {
#pragma unroll
  for (int i = 0; i < int(sizeof run / 16); i++) ((uint4*)&run)[i] = ((const uint4*)p)[i];
}
template <typename T> inline void stage_8(run_8<T>* to, const T* from) {
#pragma unroll
  for (int i = 0; i < int(sizeof(run_8<T>) / 16); i++)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :: "r"((uint)__cvta_generic_to_shared((uint4*)to + i)), "l"((const uint4*)from + i) : "memory");
}
inline void stage_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

inline float quick_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
inline float quick_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16 x 16 matrices, as in matrices_metal.h: operands in words of two elements, as mma.m16n8k16 takes them.
template <typename T> struct left_16 { uint word[4]; };
template <typename T> struct right_16 { uint word[4]; };

template <typename T> inline uint word_of(float low, float high) { return as_type<uint>(__floats2half2_rn(low, high)); }
template <> inline uint word_of<__nv_bfloat16>(float low, float high) {
  return as_type<uint>(__floats2bfloat162_rn(low, high));
}
template <typename T> inline void left_of(left_16<T>& left, float* value) {
#pragma unroll
  for (int i = 0; i < 4; i++) left.word[i] = word_of<T>(value[2 * i], value[2 * i + 1]);
}

#define LOAD_MATRICES(HOW)                                                                   \
  asm volatile("ldmatrix.sync.aligned.m8n8.x4" HOW ".shared.b16 {%0,%1,%2,%3}, [%4];"        \
      : "=r"(right.word[0]), "=r"(right.word[1]), "=r"(right.word[2]), "=r"(right.word[3])   \
      : "r"((uint)__cvta_generic_to_shared(at)) : "memory")
template <typename T> inline void right_of_rows(right_16<T>& right, run_8<T>* from, uint stride, uint lane) {
  run_8<T>* at = from + (lane & 15u) * stride + (lane >> 4);
  LOAD_MATRICES(".trans");
}
template <typename T> inline void right_of_columns(right_16<T>& right, run_8<T>* from, uint stride, uint lane) {
  run_8<T>* at = from + ((lane & 7u) + 8u * (lane >> 4)) * stride + ((lane >> 3) & 1u);
  LOAD_MATRICES("");
}
#undef LOAD_MATRICES

#define MMA(TYPE)                                                                                            \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                                         \
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                                \
      : "+f"(sum[4 * h]), "+f"(sum[4 * h + 1]), "+f"(sum[4 * h + 2]), "+f"(sum[4 * h + 3])                   \
      : "r"(left.word[0]), "r"(left.word[1]), "r"(left.word[2]), "r"(left.word[3]), "r"(right.word[2 * h]),  \
        "r"(right.word[2 * h + 1]))
template <typename T> inline void multiply_16(float* sum, left_16<T>& left, right_16<T>& right) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if constexpr (tile_type<T>::bfloat) MMA("bf16");
    else MMA("f16");
  }
}
#undef MMA
