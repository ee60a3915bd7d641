// Rows of a KV cache, of any floating type or of int8, as a simdgroup reads them.
// A row of D features lies over LANES lanes, D / LANES features each, so a simdgroup reads 32 / LANES rows at once and
// without gaps. STEPS such reads make a block; after it each lane holds the score of one row of the block.

#define LOWEST_SCORE -1e30f

// What a word of a row holds.
template <typename U> struct row_word;
template <> struct row_word<float> {
  static void unpack(uint word, thread float* value) { value[0] = as_type<float>(word); }
};
template <> struct row_word<half> {
  static void unpack(uint word, thread float* value) {
    value[0] = half_low(word);
    value[1] = half_high(word);
  }
};
template <> struct row_word<bfloat16_t> {
  static void unpack(uint word, thread float* value) {
    value[0] = as_type<float>(word << 16);
    value[1] = as_type<float>(word & 0xFFFF0000u);
  }
};
template <> struct row_word<int8_t> {
  // Through a mantissa, for conversions of integers are slow on every GPU.
  static void unpack(uint word, thread float* value) {
    uint raised = word ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 4; i++) value[i] = as_type<float>(0x4B000000u | ((raised >> (8 * i)) & 255u)) - 8388736.0f;
  }
};

// A feature as a row of `like`'s type keeps it: int8 rounds to even and clips.
template <typename U> inline U row_feature(const device U* like, float value) { return U(value); }
inline int8_t row_feature(const device int8_t* like, float value) {
  float kept = metal::max(-128.0f, metal::min(127.0f, value));
  return int8_t(as_type<int>(kept + 12582912.0f) - 0x4B400000);
}

// E features of a row, as read.
template <int E, typename U> struct row_part {
  enum { WORDS = E * sizeof(U) / 4, RUN = WORDS % 4 == 0 ? 4 : WORDS % 2 == 0 ? 2 : 1 };
  word_run<RUN> run[WORDS / RUN];
};
template <int E, typename U> inline void row_load(const device U* from, thread row_part<E, U>& part) {
  constexpr int RUN = row_part<E, U>::RUN, RUNS = row_part<E, U>::WORDS / RUN;
  const device uint* words = (const device uint*)from;
#pragma unroll
  for (int i = 0; i < RUNS; i++) load_words(words + i * RUN, part.run[i]);
}
template <int E, typename U> inline void row_unpack(thread row_part<E, U>& part, thread float* value) {
  constexpr int RUN = row_part<E, U>::RUN, RUNS = row_part<E, U>::WORDS / RUN, EACH = 4 / sizeof(U);
#pragma unroll
  for (int i = 0; i < RUNS; i++)
#pragma unroll
    for (int j = 0; j < RUN; j++) row_word<U>::unpack(part.run[i].word[j], value + (i * RUN + j) * EACH);
}

// Sum COUNT * 2 values over the lanes 2 * OFFSET apart; the lane's bits say which of the sums it keeps, in value[0].
template <int OFFSET, int COUNT> struct row_fold {
  static void run(thread float* value, uint lane) {
    bool high = (lane & uint(OFFSET)) != 0u;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      float keep = high ? value[i + COUNT] : value[i], give = high ? value[i] : value[i + COUNT];
      value[i] = keep + simd_shuffle_xor(give, ushort(OFFSET));
    }
    row_fold<OFFSET / 2, COUNT / 2>::run(value, lane);
  }
};
template <int OFFSET> struct row_fold<OFFSET, 0> {
  static void run(thread float* value, uint lane) {
#pragma unroll
    for (int o = OFFSET; o > 0; o /= 2) value[0] += simd_shuffle_xor(value[0], ushort(o));
  }
};

// The row of a block whose score a lane holds; LANES / STEPS lanes hold the same one.
template <int LANES, int STEPS> inline uint row_of(uint lane) {
  return lane % uint(LANES) / uint(LANES / STEPS) * uint(32 / LANES) + lane / uint(LANES);
}

// Products of `query` [HEADS][E], a lane's share, with the rows of a block: for each head, that of the lane's own row.
template <int LANES, int STEPS, int HEADS, int E, typename U>
inline void row_scores(thread float* query, thread row_part<E, U>* key, thread float* score, uint lane) {
  float product[HEADS][STEPS];
#pragma unroll
  for (int u = 0; u < STEPS; u++) {
    float feature[E];
    row_unpack(key[u], feature);
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      product[h][u] = 0.0f;
#pragma unroll
      for (int e = 0; e < E; e++) product[h][u] += query[h * E + e] * feature[e];
    }
  }
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    row_fold<LANES / 2, STEPS / 2>::run(product[h], lane);
    score[h] = product[h][0];
  }
}
