// Matrix products for the kernel bodies, for Metal. matrices_cuda.h gives the same names to CUDA.

#include <metal_simdgroup_matrix>

// Two small floats in one word, made by writing integers into the top of their mantissas; 1.0 is bias << bits.
template <typename T> struct mantissa { enum { bits = 10, bias = 15 }; };
template <typename T> struct weight_pair { half2 v; };

// pair * scale + offset, where every argument holds the bits of two such floats.
template <typename T> inline weight_pair<T> fma_pair(uint pair, uint scale, uint offset) {
  half2 a = as_type<half2>(pair), b = as_type<half2>(scale), c = as_type<half2>(offset);
  weight_pair<T> made;
  made.v.x = metal::fma(a.x, b.x, c.x);
  made.v.y = metal::fma(a.y, b.y, c.y);
  return made;
}
// Matrix tiles: 16 outputs by 8 input rows. In the result, a lane holds outputs tile_output and tile_output + 8 of
// input rows tile_row and tile_row + 1; of the weights it holds the same outputs, and word tile_word of 4.
inline uint tile_output(uint lane) { return ((lane >> 2) & 4u) + ((lane >> 1) & 3u); }
inline uint tile_word(uint lane) { return ((lane >> 2) & 2u) + (lane & 1u); }
inline uint tile_row(uint lane) { return 2u * tile_word(lane); }
// What lanes differ by that hold the same outputs, and words 1 or 2 apart.
inline ushort tile_apart(uint words) { return words == 1u ? 1 : 8; }

// A lane's share of the input under 4 words, which are `apart` numbers apart from x on: weight j of its half word, for two
// of 8 columns. Column ROWS * part + row is this row's input under this part of the words, and 0 under the others.
template <typename T> struct tile_x { float even[8]; float odd[8]; };

template <typename T, int ROWS, int PARTS>
inline void tile_load(thread tile_x<T>& tile, const device T* x, uint apart, uint k, uint rows, uint first, uint lane) {
  const uint depth = tile_output(lane), word = depth >> 1, column = first + tile_row(lane);
  const device T* from = x + word * apart + 8u * (depth & 1u);
  const uint part = word * uint(PARTS) / 4u, even = column % ROWS, odd = (column + 1u) % ROWS;
  const bool takes_even = even < rows && column / ROWS == part, takes_odd = odd < rows && (column + 1u) / ROWS == part;
  for (uint j = 0; j < 8; j++) {
    tile.even[j] = takes_even ? float(from[even * k + j]) : 0.0f;
    tile.odd[j] = takes_odd ? float(from[odd * k + j]) : 0.0f;
  }
}

// Under RUN words that follow one another in each of 4 lanes: RUN tiles, MATRICES from one another.
template <typename T, int ROWS, int PARTS, int RUN, int MATRICES>
inline void tile_load_run(thread tile_x<T>* tiles, const device T* x, uint k, uint rows, uint first, uint lane) {
#pragma unroll
  for (int v = 0; v < RUN; v++)
    tile_load<T, ROWS, PARTS>(tiles[v * MATRICES], x + 16u * v, 16u * RUN, k, rows, first, lane);
}

inline void tile_multiply_8(thread float* sum, float w0, float w1, float x0, float x1) {
  simdgroup_matrix<float, 8, 8> a, b, c;
  a.thread_elements()[0] = w0; a.thread_elements()[1] = w1;
  b.thread_elements()[0] = x0; b.thread_elements()[1] = x1;
  c.thread_elements()[0] = sum[0]; c.thread_elements()[1] = sum[1];
  simdgroup_multiply_accumulate(c, a, b, c);
  sum[0] = c.thread_elements()[0]; sum[1] = c.thread_elements()[1];
}

// sum[0..1]: output tile_output, sum[2..3]: output + 8. low[0..1], high[0..1]: weights j and j + 8, then j + 1 and j + 9.
template <typename T>
inline void tile_multiply(thread float* sum, thread weight_pair<T>* low, thread weight_pair<T>* high, thread tile_x<T>& tile, uint j) {
  for (uint i = 0; i < 2; i++) {
    tile_multiply_8(sum, float(low[i].v.x), float(low[i].v.y), tile.even[j + i], tile.odd[j + i]);
    tile_multiply_8(sum + 2, float(high[i].v.x), float(high[i].v.y), tile.even[j + i], tile.odd[j + i]);
  }
}

// 8 consecutive elements, which start on a 16-byte boundary, loaded or staged at once.
template <typename T> struct alignas(16) run_8 { T value[8]; };

template <typename T> inline void load_8(const device T* p, thread run_8<T>& run) {
  for (uint i = 0; i < 8; i++) run.value[i] = p[i];
}

// Copies into threadgroup memory may be under way until stage_wait; a barrier shows them to the other threads.
template <typename T> inline void stage_8(TG(run_8<T>) to, const device T* from) {
  for (uint i = 0; i < 8; i++) to->value[i] = from[i];
}
inline void stage_wait() {}

inline float quick_exp2(float x) { return metal::fast::exp2(x); }
inline float quick_reciprocal(float x) { return 1.0f / x; }

// 16 x 16 matrices, spread over a simdgroup. In a sum, value 4 h + 2 r + c of a lane is in row tile_output + 8 r and
// column tile_row + 8 h + c. A left operand comes from such values, and a right one out of threadgroup memory.
template <typename T> struct left_16 { float value[8]; };
template <typename T> struct right_16 { float value[8]; };

template <typename T> inline void left_of(thread left_16<T>& left, thread float* value) {
  for (uint i = 0; i < 8; i++) left.value[i] = value[i];
}

// `from` is the matrix's first run of 8, and its rows are `stride` runs apart.
template <typename T> inline void right_of_rows(thread right_16<T>& right, TG(run_8<T>) from, uint stride, uint lane) {
  for (uint i = 0; i < 8; i++) {
    uint h = i >> 2, q = (i >> 1) & 1u, c = i & 1u;
    right.value[i] = float(from[(8u * q + tile_output(lane)) * stride + h].value[tile_row(lane) + c]);
  }
}
// The same where the rows in memory are the operand's columns.
template <typename T> inline void right_of_columns(thread right_16<T>& right, TG(run_8<T>) from, uint stride, uint lane) {
  for (uint i = 0; i < 8; i++) {
    uint h = i >> 2, q = (i >> 1) & 1u, c = i & 1u;
    right.value[i] = float(from[(8u * h + tile_row(lane) + c) * stride + q].value[tile_output(lane)]);
  }
}

template <typename T>
inline void multiply_16(thread float* sum, thread left_16<T>& left, thread right_16<T>& right) {
  for (uint h = 0; h < 2; h++)
    for (uint r = 0; r < 2; r++)
      for (uint q = 0; q < 2; q++) {
        thread float* a = left.value + 4u * q + 2u * r;
        thread float* b = right.value + 4u * h + 2u * q;
        tile_multiply_8(sum + 4u * h + 2u * r, a[0], a[1], b[0], b[1]);
      }
}
