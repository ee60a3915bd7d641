// Dot products of packed weight rows with float values, a chunk of consecutive weights at a time.
// Needs a prelude, and after it the types that MLX names on both back-ends.

// BITS a weight: 32 and 16 for dense rows, 8, 4 and 2 for MLX's affine packing. A lane takes CHUNK weights of a row at
// once, in WORDS words; all of them are in one group. The input under a simdgroup's chunks, BLOCK numbers, waits in
// threadgroup memory, PITCH numbers a lane, so that lanes read four numbers at once from different banks.
template <int BITS> struct packing {
  enum { CHUNK = BITS == 32 ? 8 : BITS == 16 ? 16 : 32, WORDS = CHUNK * BITS / 32, RUN = WORDS < 4 ? WORDS : 4 };
  enum { BLOCK = 32 * CHUNK, PITCH = CHUNK + 4 };
};

template <typename T> struct number {};
template <> struct number<float> {
  enum { per_word = 1 };
  static inline void widen(uint word, thread float* value) { value[0] = as_type<float>(word); }
};
template <> struct number<float16_t> {
  enum { per_word = 2 };
  static inline void widen(uint word, thread float* value) {
    value[0] = half_low(word);
    value[1] = half_high(word);
  }
};
template <> struct number<bfloat16_t> {
  enum { per_word = 2 };
  static inline void widen(uint word, thread float* value) {
    value[0] = as_type<float>(word << 16);
    value[1] = as_type<float>(word & 0xFFFF0000u);
  }
};

// COUNT consecutive numbers from a 16-byte boundary.
template <typename T, int COUNT> inline void load_values(const device T* from, thread float* value) {
  const device uint* words = (const device uint*)from;
#pragma unroll
  for (int i = 0; i < COUNT / number<T>::per_word; i += 4) {
    word_run<4> run;
    load_words(words + i, run);
#pragma unroll
    for (int j = 0; j < 4; j++) number<T>::widen(run.word[j], value + (i + j) * number<T>::per_word);
  }
}

// Four numbers in one load.
template <typename T> inline void load_four(const device T* from, thread float* value) {
  word_run<4 / number<T>::per_word> run;
  load_words((const device uint*)from, run);
#pragma unroll
  for (int i = 0; i < 4 / number<T>::per_word; i++) number<T>::widen(run.word[i], value + i * number<T>::per_word);
}

// The word's weight j as 1 + q / 2^BITS: its bits go to the top of a mantissa, which needs no conversion.
template <int BITS> inline float raised(uint word, int j) {
  const int up = 23 - BITS - BITS * j;
  const uint mask = ((1u << BITS) - 1u) << (23 - BITS);
  const uint moved = up >= 0 ? word << (up >= 0 ? up : 0) : word >> (up >= 0 ? 0 : -up);
  return as_type<float>(keep_and_set(moved, mask, 0x3F800000u));
}

// Where the parts of a sheet of N rows begin, in words.
struct sheet_parts {
  uint scales, offsets, bias, gain, second_gain;
};
template <typename T> inline uint sheet_words(uint numbers) { return (numbers * uint(sizeof(T)) + 15u) / 16u * 4u; }
template <typename T, int BITS, int G, int BALANCED, int BIAS> inline sheet_parts sheet_of(uint n, uint k) {
  const uint groups = BITS < 16 ? sheet_words<T>(n * (G == 0 ? 1u : k / uint(G == 0 ? 1 : G))) : 0u;
  sheet_parts parts;
  parts.scales = (n * (k * uint(BITS) / 32u) + 3u) / 4u * 4u;
  parts.offsets = parts.scales + groups;
  parts.bias = parts.offsets + (BALANCED ? 0u : groups);
  parts.gain = parts.bias + (BIAS ? sheet_words<T>(n) : 0u);
  parts.second_gain = parts.gain + sheet_words<T>(k);
  return parts;
}

// A lane's chunks of COUNT rows, as read: a conversion would wait for what is on its way.
template <typename T, int BITS, int COUNT> struct chunk_rows {
  word_run<packing<BITS>::RUN> run[COUNT][packing<BITS>::WORDS / packing<BITS>::RUN];
  T scale[COUNT], offset[COUNT];
};

// Read chunk `at` of COUNT rows of w [N, K], or the last one if that is past the end. G weights share a scale and an
// offset, with G of 0 a whole row does; BALANCED weights are (q - 1.5) scale and have no offsets, dense ones no scales.
template <typename T, int BITS, int G, int BALANCED, int COUNT>
inline void fetch(const device uint* w, const device T* scales, const device T* offsets, uint k, uint at,
                  thread const uint* row, thread chunk_rows<T, BITS, COUNT>& rows) {
  constexpr int RUN = packing<BITS>::RUN, WORDS = packing<BITS>::WORDS;
  const uint last = k / uint(packing<BITS>::CHUNK) - 1u;
  at = at < last ? at : last;
#pragma unroll
  for (int o = 0; o < COUNT; o++) {
    const device uint* from = w + row[o] * (k * uint(BITS) / 32u) + at * uint(WORDS);
#pragma unroll
    for (int i = 0; i < WORDS / RUN; i++) load_words(from + i * RUN, rows.run[o][i]);
    if (BITS < 16) {
      const uint size = G == 0 ? k : uint(G), group = row[o] * (k / size) + at * uint(packing<BITS>::CHUNK) / size;
      rows.scale[o] = scales[group];
      if (!BALANCED) rows.offset[o] = offsets[group];
    }
  }
}

// How a word of weights meets the numbers above it; w = scale q + offset, `total` is the sum of x over the chunk.
template <typename T, int BITS> struct word_dot {
  static inline float dot(uint word, thread const float* x) {
    float product = 0.0f;
#pragma unroll
    for (int j = 0; j < 32 / BITS; j++) product += raised<BITS>(word, j) * x[j];
    return product;
  }
  static inline float finish(float product, float total, float scale, float offset) {
    return scale * (float(1 << BITS) * (product - total)) + offset * total;
  }
};
template <typename T> struct dense_dot {
  static inline float dot(uint word, thread const float* x) {
    float value[2], product = 0.0f;
    number<T>::widen(word, value);
#pragma unroll
    for (int j = 0; j < number<T>::per_word; j++) product += value[j] * x[j];
    return product;
  }
  static inline float finish(float product, float, float, float) { return product; }
};
template <typename T> struct word_dot<T, 16> : dense_dot<T> {};
template <typename T> struct word_dot<T, 32> : dense_dot<T> {};

// Add the products of a lane's chunks with x [CHUNK]; `total` is the sum of x, for packed weights.
template <typename T, int BITS, int BALANCED, int COUNT>
inline void multiply_by(thread const chunk_rows<T, BITS, COUNT>& rows, thread const float* x, float total,
                        thread float* sum) {
  constexpr int RUN = packing<BITS>::RUN;
#pragma unroll
  for (int o = 0; o < COUNT; o++) {
    float product = 0.0f;
#pragma unroll
    for (int i = 0; i < packing<BITS>::WORDS; i++)
      product += word_dot<T, BITS>::dot(rows.run[o][i / RUN].word[i % RUN], x + i * (32 / BITS));
    const float scale = BITS < 16 ? float(rows.scale[o]) : 0.0f;
    const float offset = BITS >= 16 ? 0.0f : BALANCED ? -1.5f * scale : float(rows.offset[o]);
    sum[o] += word_dot<T, BITS>::finish(product, total, scale, offset);
  }
}
template <int BITS> inline float chunk_total(thread const float* x) {
  float total = 0.0f;
  if (BITS < 16) {
#pragma unroll
    for (int i = 0; i < packing<BITS>::CHUNK; i++) total += x[i];
  }
  return total;
}

// The same with the numbers that wait for the lane.
template <typename T, int BITS, int BALANCED, int COUNT>
inline void multiply(thread const chunk_rows<T, BITS, COUNT>& rows, TG(float) waiting, thread float* sum) {
  constexpr int CHUNK = packing<BITS>::CHUNK;
  float x[CHUNK];
#pragma unroll
  for (int i = 0; i < CHUNK; i += 4) {
    const float4 four = *(TG(float4))(waiting + i);
    x[i] = four.x; x[i + 1] = four.y; x[i + 2] = four.z; x[i + 3] = four.w;
  }
  multiply_by<T, BITS, BALANCED, COUNT>(rows, x, chunk_total<BITS>(x), sum);
}

// Blocks of x, STAGES at most, that hold what is `left` of it.
template <int BITS, int STAGES> inline uint stage_blocks(uint left) {
  const uint blocks = (left + packing<BITS>::BLOCK - 1u) / packing<BITS>::BLOCK;
  return blocks < uint(STAGES) ? blocks : uint(STAGES);
}

// Add the products of COUNT rows with `blocks` blocks of x, those from `start` on, that wait. `rows` holds the first of
// their chunks when it comes in, and the one after them when it goes out: the next chunk is always on its way.
template <typename T, int BITS, int G, int BALANCED, int COUNT>
inline void multiply_stage(thread chunk_rows<T, BITS, COUNT>& rows, const device uint* w, const device T* scales,
                           const device T* offsets, uint k, uint start, uint blocks, thread const uint* row,
                           TG(float) waiting, uint lane, thread float* sum) {
  constexpr uint BLOCK = packing<BITS>::BLOCK, CHUNK = packing<BITS>::CHUNK, PITCH = packing<BITS>::PITCH;
  // Two sets take turns, for a copy of what is on its way would wait for it. Past the end, lanes read the last chunk.
  chunk_rows<T, BITS, COUNT> odd;
  uint b = 0u, next = (start + BLOCK) / CHUNK + lane;
  for (; b + 1u < blocks; b += 2u, next += 64u) {
    fetch<T, BITS, G, BALANCED, COUNT>(w, scales, offsets, k, next, row, odd);
    multiply<T, BITS, BALANCED, COUNT>(rows, waiting + (b * 32u + lane) * PITCH, sum);
    fetch<T, BITS, G, BALANCED, COUNT>(w, scales, offsets, k, next + 32u, row, rows);
    multiply<T, BITS, BALANCED, COUNT>(odd, waiting + ((b + 1u) * 32u + lane) * PITCH, sum);
  }
  if (b < blocks) {
    fetch<T, BITS, G, BALANCED, COUNT>(w, scales, offsets, k, next, row, odd);
    multiply<T, BITS, BALANCED, COUNT>(rows, waiting + (b * 32u + lane) * PITCH, sum);
    rows = odd;
  }
}
