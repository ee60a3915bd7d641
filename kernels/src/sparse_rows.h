// Rows of weights that are read or left out, after matvec.h. A lane takes `each` weights in `words` words at once: fewer
// than matvec.h's chunks, so that neighbouring lanes' inputs are near each other and several rows' sums fit.
template <int BITS> struct piece {
  enum { each = BITS == 32 ? 4 : BITS == 2 ? 16 : 8, words = BITS == 32 ? 4 : BITS == 2 ? 1 : BITS / 4 };
};

// COUNT consecutive numbers in one load, 4 from a 16-byte boundary; or a single one.
template <typename X, int COUNT> struct consecutive {
  static inline void load(const device X* from, thread float* value) { load_four<X>(from, value); }
};
template <typename X> struct consecutive<X, 1> {
  static inline void load(const device X* from, thread float* value) { value[0] = float(from[0]); }
};

// A piece's weights; packed ones as 1 + q / 2^BITS, which `row_terms` takes back.
template <typename T, int BITS>
inline void unpack_piece(thread const word_run<piece<BITS>::words>& run, thread float* level) {
#pragma unroll
  for (int i = 0; i < int(piece<BITS>::words); i++) {
    if (BITS >= 16) {
      number<T>::widen(run.word[i], level + i * number<T>::per_word);
    } else {
#pragma unroll
      for (int j = 0; j < 32 / BITS; j++) level[i * (32 / BITS) + j] = raised<(BITS < 16 ? BITS : 8)>(run.word[i], j);
    }
  }
}

// w = gain * level + shift for the weights from `at` on in a row of `width`. Scales stay as they were read until they are
// needed: a conversion would wait for what is on its way.
template <typename T> struct row_scales { T scale, offset; };
struct row_terms { float gain; float shift; };
template <int G, int BALANCED, typename T>
inline void read_scales(const device T* scales, const device T* offsets, uint row, uint width, uint at,
                        thread row_scales<T>& read) {
  const uint size = G == 0 ? width : uint(G), group = row * (width / size) + at / size;
  read.scale = scales[group];
  if (!BALANCED) read.offset = offsets[group];
}
template <int BITS, int BALANCED, typename T> inline row_terms terms_of(thread const row_scales<T>& read) {
  const float scale = float(read.scale);
  row_terms terms;
  terms.gain = scale * float(1 << (BITS & 15));
  terms.shift = (BALANCED ? -1.5f * scale : float(read.offset)) - terms.gain;
  return terms;
}

// Products of OUTPUTS rows' pieces, the row's weights from `at` on, with ROWS rows of x: added to sum[OUTPUTS][ROWS].
// With NORM, x is multiplied by `gain` and its squares are added up: their root can leave the sum afterwards.
template <int BITS, int G, int BALANCED, int OUTPUTS, int ROWS, int NORM, typename X, typename T>
inline void multiply_piece(const device X* x, const device T* gain, const device T* scales, const device T* offsets,
                           thread const word_run<piece<BITS>::words>* run, thread const uint* row, uint wanted, uint at,
                           uint k, uint rows, thread float* sum, thread float* squares) {
  constexpr int EACH = piece<BITS>::each;
  float level[OUTPUTS][EACH], factor[EACH];
  row_terms terms[OUTPUTS];
#pragma unroll
  for (int o = 0; o < OUTPUTS; o++) {
    unpack_piece<T, BITS>(run[o], level[o]);
    terms[o].gain = 1.0f;
    terms[o].shift = 0.0f;
    if (BITS < 16 && ((wanted >> o) & 1u)) {
      row_scales<T> read;
      read_scales<G, BALANCED>(scales, offsets, row[o], k, at, read);
      terms[o] = terms_of<BITS, BALANCED>(read);
    }
  }
  if (NORM) load_values<T, EACH>(gain + at, factor);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    float value[EACH], total = 0.0f;
    load_values<X, EACH>(x + (uint(r) < rows ? uint(r) : rows - 1u) * k + at, value);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      if (NORM) {
        squares[r] += value[i] * value[i];
        value[i] *= factor[i];
      }
      total += value[i];
    }
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
      float product = 0.0f;
#pragma unroll
      for (int i = 0; i < EACH; i++) product += level[o][i] * value[i];
      sum[o * ROWS + r] += BITS < 16 ? terms[o].gain * product + terms[o].shift * total : product;
    }
  }
}

// The pieces of rows whose bit in `wanted` is 0 are not read.
template <int BITS, int OUTPUTS>
inline void load_pieces(const device uint* w, thread const uint* row, uint wanted, uint pieces, uint at,
                        thread word_run<piece<BITS>::words>* run) {
#pragma unroll
  for (int o = 0; o < OUTPUTS; o++) {
    for (int i = 0; i < int(piece<BITS>::words); i++) run[o].word[i] = 0u;
    if ((wanted >> o) & 1u) load_words(w + (row[o] * pieces + at) * uint(piece<BITS>::words), run[o]);
  }
}

// A lane's share of whole rows, with LOADS pieces of each in flight.
template <int BITS, int G, int BALANCED, int OUTPUTS, int ROWS, int NORM, int LOADS, typename X, typename T>
inline void multiply_rows(const device X* x, const device T* gain, const device uint* w, const device T* scales,
                          const device T* offsets, thread const uint* row, uint wanted, uint k, uint rows, uint lane,
                          thread float* sum, thread float* squares) {
  constexpr uint EACH = piece<BITS>::each;
  const uint pieces = k / EACH;
  uint at = lane;
  for (; at + 32u * (LOADS - 1) < pieces; at += 32u * LOADS) {
    word_run<piece<BITS>::words> run[LOADS][OUTPUTS];
#pragma unroll
    for (int u = 0; u < LOADS; u++) load_pieces<BITS, OUTPUTS>(w, row, wanted, pieces, at + 32u * u, run[u]);
#pragma unroll
    for (int u = 0; u < LOADS; u++)
      multiply_piece<BITS, G, BALANCED, OUTPUTS, ROWS, NORM>(x, gain, scales, offsets, run[u], row, wanted,
                                                             (at + 32u * u) * EACH, k, rows, sum, squares);
  }
  for (; at < pieces; at += 32u) {
    word_run<piece<BITS>::words> run[OUTPUTS];
    load_pieces<BITS, OUTPUTS>(w, row, wanted, pieces, at, run);
    multiply_piece<BITS, G, BALANCED, OUTPUTS, ROWS, NORM>(x, gain, scales, offsets, run, row, wanted, at * EACH, k,
                                                           rows, sum, squares);
  }
}
