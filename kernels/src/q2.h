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

// Scales as they lie in words.
template <typename S> struct scale_word { enum { each = 2 }; };
template <> struct scale_word<float> { enum { each = 1 }; };
template <typename S> inline float scale_of(uint word, int i) { return i % 2 ? half_high(word) : half_low(word); }
template <> inline float scale_of<bfloat16_t>(uint word, int i) {
  return as_type<float>(i % 2 ? word & 0xFFFF0000u : word << 16);
}
template <> inline float scale_of<float>(uint word, int) { return as_type<float>(word); }

// A lane's words of one of its outputs in HELD steps, and the scales for its two columns of every matrix, or the one scale
// that both have, as read: a conversion would wait for what is on its way. With SPREAD, which is for 4 steps of a word a lane with a scale each or
// one for two, a lane reads the 4 words and scales that follow one another at once.
template <typename S, int G, int RUN, int HELD, int MATRICES, int COLUMNS> struct q2_run {
  enum { SIZE = G < 64 ? 64 : G, SCALES = (256 / SIZE + scale_word<S>::each - 1) / scale_word<S>::each };
  word_run<RUN> words[HELD];
  S scale[HELD][MATRICES][COLUMNS];
  word_run<SCALES> scales;
};

inline uint q2_output(uint tile, uint more, uint n, uint lane) {
  const uint output = 16u * tile + tile_output(lane) + more;
  return output < n ? output : n - 1u;
}

template <typename S, int G, int RUN, int HELD, int ROWS, int PARTS, int MATRICES, int SPREAD, int COLUMNS>
inline void q2_fetch(thread q2_run<S, G, RUN, HELD, MATRICES, COLUMNS>& run, const device uint* w, const device S* scales,
                     uint output, uint k, uint start, uint lane) {
  constexpr uint SIZE = G == 0 ? 1 : G;
  const device uint* from = w + output * (k / 16u) + start * 4u * RUN;
  if (SPREAD) {
    word_run<4> four;
    load_words(from + 4u * tile_word(lane), four);
    load_words((const device uint*)(scales + (output * k + start * 64u) / SIZE), run.scales);
    for (int h = 0; h < HELD; h++) run.words[h].word[0] = four.word[h % 4];
    return;
  }
#pragma unroll
  for (int h = 0; h < HELD; h++) {
    load_words(from + RUN * (4u * h + tile_word(lane)), run.words[h]);
    for (int i = 0; i < COLUMNS * MATRICES && G != 0; i++) {
      const uint column = 8u * uint(i / COLUMNS) + tile_row(lane) + uint(i % COLUMNS);
      const uint part = column / ROWS < PARTS ? column / ROWS : 0u;
      const uint group = ((start + h) * 4u * RUN + part * (4u * RUN / PARTS)) * 16u / SIZE;
      run.scale[h][i / COLUMNS][i % COLUMNS] = scales[output * (k / SIZE) + group];
    }
  }
}

// The words that were read with SPREAD change places among the four lanes of an output, from 4 of one lane in a row to
// 4 of one step: lane t begins with words 4 t + h, and ends with words 4 h + t.
template <typename S, int G, int RUN, int HELD, int MATRICES, int COLUMNS>
inline void q2_spread(thread q2_run<S, G, RUN, HELD, MATRICES, COLUMNS>& run, uint lane) {
#pragma unroll
  for (int apart = 1; apart < 4; apart *= 2) {
    const bool later = (tile_word(lane) & uint(apart)) != 0u;
#pragma unroll
    for (int h = 0; h < HELD; h++)
      if (!(h & apart)) {
        thread uint& here = run.words[h].word[0];
        thread uint& there = run.words[(h + apart) % HELD].word[0];
        const uint got = simd_shuffle_xor(later ? here : there, tile_apart(apart));
        if (later) here = got;
        else there = got;
      }
  }
}

// The scale of column i % 2 in matrix i / 2.
template <int SPREAD, typename S, int G, int RUN, int HELD, int MATRICES, int COLUMNS>
inline float q2_scale(thread const q2_run<S, G, RUN, HELD, MATRICES, COLUMNS>& run, int h, int i) {
  const int at = 64 * h / (G < 64 ? 64 : G), each = scale_word<S>::each;
  return SPREAD ? scale_of<S>(run.scales.word[at / each], at) : float(run.scale[h][i / 2][i % COLUMNS]);
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
