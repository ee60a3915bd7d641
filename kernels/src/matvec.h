// Dot products of packed weight rows with float values, a chunk of consecutive weights at a time.
// Needs a prelude, and after it the types that MLX names on both back-ends.

// BITS a weight: 32 and 16 for dense rows, 8, 4 and 2 for MLX's affine packing. A lane takes CHUNK weights at once, in
// WORDS words; all of them are in one group.
template <int BITS> struct packing {
  enum { CHUNK = BITS == 32 ? 4 : BITS == 16 ? 8 : BITS == 8 ? 16 : 32, WORDS = CHUNK * BITS / 32 };
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

// The word's weight j as 1 + q / 2^BITS: its bits go to the top of a mantissa, which needs no conversion.
template <int BITS> inline float raised(uint word, int j) {
  const int up = 23 - BITS - BITS * j;
  const uint mask = ((1u << BITS) - 1u) << (23 - BITS);
  return as_type<float>(((up >= 0 ? word << (up >= 0 ? up : 0) : word >> (up >= 0 ? 0 : -up)) & mask) | 0x3F800000u);
}

// A chunk of weights times x[CHUNK], whose sum is `total`, where w = scale q + offset.
template <typename T, int BITS> struct packed {
  static inline float dot(thread const word_run<packing<BITS>::WORDS>& run, thread const float* x, float total,
                          float scale, float offset) {
    const int per_word = 32 / BITS;
    float product = 0.0f;
#pragma unroll
    for (int i = 0; i < packing<BITS>::WORDS; i++)
#pragma unroll
      for (int j = 0; j < per_word; j++) product += raised<BITS>(run.word[i], j) * x[i * per_word + j];
    return scale * (float(1 << BITS) * (product - total)) + offset * total;
  }
};

template <typename T> struct dense {
  static inline float dot(thread const word_run<4>& run, thread const float* x) {
    float product = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float value[2];
      number<T>::widen(run.word[i], value);
#pragma unroll
      for (int j = 0; j < number<T>::per_word; j++) product += value[j] * x[i * number<T>::per_word + j];
    }
    return product;
  }
};
template <typename T> struct packed<T, 16> {
  static inline float dot(thread const word_run<4>& run, thread const float* x, float, float, float) {
    return dense<T>::dot(run, x);
  }
};
template <typename T> struct packed<T, 32> {
  static inline float dot(thread const word_run<4>& run, thread const float* x, float, float, float) {
    return dense<T>::dot(run, x);
  }
};

// Chunk `at` of COUNT rows of w [N, K] times x[CHUNK], added to sum[COUNT]. G weights share a scale and an offset, with
// G of 0 a whole row does; BALANCED weights are (q - 1.5) scale and have no offsets, dense ones no scales either.
template <typename T, int BITS, int G, int BALANCED, int COUNT>
inline void add_products(const device uint* w, const device T* scales, const device T* offsets, uint k, uint at,
                         thread const uint* row, thread const float* x, thread float* sum) {
  word_run<packing<BITS>::WORDS> run[COUNT];
  float scale[COUNT], offset[COUNT];
#pragma unroll
  for (int o = 0; o < COUNT; o++) {
    load_words(w + row[o] * (k * uint(BITS) / 32u) + at * uint(packing<BITS>::WORDS), run[o]);
    scale[o] = offset[o] = 0.0f;
    if (BITS < 16) {
      const uint size = G == 0 ? k : uint(G), group = row[o] * (k / size) + at * uint(packing<BITS>::CHUNK) / size;
      scale[o] = float(scales[group]);
      offset[o] = BALANCED ? -1.5f * scale[o] : float(offsets[group]);
    }
  }
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < packing<BITS>::CHUNK; i++) total += x[i];
#pragma unroll
  for (int o = 0; o < COUNT; o++) sum[o] += packed<T, BITS>::dot(run[o], x, total, scale[o], offset[o]);
}

// What is applied to a gate: 1 SiLU, 2 GELU by tanh, 3 ReLU, 4 GELU by the error function.
template <int ACT> inline float activated(float x) {
  if (ACT == 1) return x / (1.0f + metal::exp(-x));
  if (ACT == 2) return x / (1.0f + metal::exp(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
  if (ACT == 3) return x > 0.0f ? x : 0.0f;
  // erf, Abramowitz and Stegun 7.1.26: off by 1.5e-7 at most.
  const float z = (x < 0.0f ? -x : x) * 0.7071067811865476f, t = 1.0f / (1.0f + 0.3275911f * z);
  const float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float erf = 1.0f - tail * metal::exp(-z * z);
  return 0.5f * x * (1.0f + (x < 0.0f ? -erf : erf));
}

// Chunk `at` of one row, as numbers.
template <typename T, int BITS, int G>
inline void unpack(const device uint* w, const device T* scales, const device T* offsets, uint k, uint row, uint at,
                   thread float* value) {
  const int per_word = 32 / BITS;
  const uint size = G == 0 ? k : uint(G), group = row * (k / size) + at * uint(packing<BITS>::CHUNK) / size;
  word_run<packing<BITS>::WORDS> run;
  load_words(w + row * (k * uint(BITS) / 32u) + at * uint(packing<BITS>::WORDS), run);
  const float scale = BITS < 16 ? float(scales[group]) : 1.0f, offset = BITS < 16 ? float(offsets[group]) : 0.0f;
#pragma unroll
  for (int i = 0; i < packing<BITS>::WORDS; i++) {
    if (BITS >= 16) {
      number<T>::widen(run.word[i], value + i * per_word);
    } else {
#pragma unroll
      for (int j = 0; j < per_word; j++)
        value[i * per_word + j] = float(run.word[i] >> (BITS * j) & ((1u << (BITS & 15)) - 1u)) * scale + offset;
    }
  }
}
