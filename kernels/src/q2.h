// Balanced 2-bit weights, 16 a word, weight i at bits 2i. The integer q stands for the level q - 1.5.

// Levels of weights J and J + 8. q goes into a mantissa, and one exact fma takes 1 + q * 2^-E to q - 1.5.
// The constants are bit patterns, for CUDA's own conversions from float are left to the GPU.
template <typename T, int J> inline weight_pair<T> q2_levels(uint word) {
  // A shift brings EACH neighbouring weights under the mantissa; the last of them is its top two bits.
  constexpr int BITS = mantissa<T>::bits, EACH = (BITS - 1) / 2, NTH = J % EACH;
  constexpr int AT = BITS % 2 + 2 * NTH + (BITS % 2 ? 0 : 2), E = BITS - AT, SHIFT = AT - 2 * J;
  constexpr uint BOTH = 0x00010001u, MASK = BOTH * (3u << AT), ONE = BOTH * (uint(mantissa<T>::bias) << BITS);
  constexpr uint SCALE = BOTH * (uint(mantissa<T>::bias + E) << BITS);
  constexpr uint OFFSET = SCALE + BOTH * (0x8000u | (3u << (BITS - 1 - E)));  // -(2^E + 1.5)
  uint shifted = SHIFT > 0 ? word << (SHIFT > 0 ? SHIFT : 0) : word >> (SHIFT > 0 ? 0 : -SHIFT);
  return fma_pair<T>(keep_and_set(shifted, MASK, ONE), SCALE, OFFSET);
}

// One word of each of a lane's two outputs against MATRICES matrices of input; sum is [MATRICES][4].
template <typename T, int MATRICES, int J>
inline void q2_tiles_step(thread float* sum, thread tile_x<T>* tile, uint low, uint high) {
  weight_pair<T> low_levels[2] = {q2_levels<T, J>(low), q2_levels<T, J + 1>(low)};
  weight_pair<T> high_levels[2] = {q2_levels<T, J>(high), q2_levels<T, J + 1>(high)};
#pragma unroll
  for (int m = 0; m < MATRICES; m++) tile_multiply<T>(sum + 4 * m, low_levels, high_levels, tile[m], J);
}
template <typename T, int MATRICES>
inline void q2_tiles_multiply(thread float* sum, thread tile_x<T>* tile, uint low, uint high) {
  q2_tiles_step<T, MATRICES, 0>(sum, tile, low, high);
  q2_tiles_step<T, MATRICES, 2>(sum, tile, low, high);
  q2_tiles_step<T, MATRICES, 4>(sum, tile, low, high);
  q2_tiles_step<T, MATRICES, 6>(sum, tile, low, high);
}

// The words of a lane's two outputs in HELD steps, and their scales for its two columns of every matrix, as read: a
// conversion would wait for what is on its way.
template <typename S, int RUN, int HELD, int MATRICES> struct q2_run {
  word_run<RUN> low[HELD];
  word_run<RUN> high[HELD];
  S scale[HELD][MATRICES][4];
};

inline uint q2_output(uint tile, uint more, uint n, uint lane) {
  const uint output = 16u * tile + tile_output(lane) + more;
  return output < n ? output : n - 1u;
}

template <typename S, int G, int RUN, int HELD, int ROWS, int PARTS, int MATRICES>
inline void q2_fetch(thread q2_run<S, RUN, HELD, MATRICES>& run, const device uint* w, const device S* scales, uint n,
                     uint k, uint tile, uint start, uint lane) {
  constexpr uint SIZE = G == 0 ? 1 : G;
  const uint low = q2_output(tile, 0u, n, lane), high = q2_output(tile, 8u, n, lane);
  const uint at = start * 4u * RUN + RUN * tile_word(lane);
#pragma unroll
  for (int h = 0; h < HELD; h++) {
    load_words(w + low * (k / 16u) + at + 4 * RUN * h, run.low[h]);
    load_words(w + high * (k / 16u) + at + 4 * RUN * h, run.high[h]);
    for (int i = 0; i < 2 * MATRICES && G != 0; i++) {
      const uint column = 8u * uint(i / 2) + tile_row(lane) + uint(i % 2);
      const uint part = column / ROWS < PARTS ? column / ROWS : 0u;
      const uint group = ((start + h) * 4u * RUN + part * (4u * RUN / PARTS)) * 16u / SIZE;
      run.scale[h][i / 2][i % 2] = scales[low * (k / SIZE) + group];
      run.scale[h][i / 2][i % 2 + 2] = scales[high * (k / SIZE) + group];
    }
  }
}

// The 16 levels of a word as 1 + q / 4, for arithmetic outside the tiles.
inline void q2_unpack(uint word, thread float* level) {
#pragma unroll
  for (int j = 0; j < 8; j++) {
    uint bits = j < 4 ? word << (j < 4 ? 8 - 2 * j : 0) : word >> (j < 4 ? 0 : 2 * j - 8);
    uint pair = (bits & 0x03000300u) | 0x3C003C00u;
    level[j] = half_low(pair);
    level[j + 8] = half_high(pair);
  }
}
