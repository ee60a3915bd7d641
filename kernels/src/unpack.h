// Chunk `at` of one row, as numbers.
template <typename T, int BITS, int G, int BALANCED>
inline void unpack(const device uint* w, const device T* scales, const device T* offsets, uint k, uint row, uint at,
                   thread float* value) {
  constexpr int RUN = packing<BITS>::RUN, per_word = 32 / BITS;
  chunk_rows<T, BITS, 1> rows;
  fetch<T, BITS, G, BALANCED, 1>(w, scales, offsets, k, at, &row, rows);
  const float scale = BITS < 16 ? float(rows.scale[0]) : 0.0f;
  const float offset = BITS >= 16 ? 0.0f : BALANCED ? -1.5f * scale : float(rows.offset[0]);
#pragma unroll
  for (int i = 0; i < packing<BITS>::WORDS; i++) {
    const uint word = rows.run[0][i / RUN].word[i % RUN];
    if (BITS >= 16) {
      number<T>::widen(word, value + i * per_word);
    } else {
#pragma unroll
      for (int j = 0; j < per_word; j++)
        value[i * per_word + j] = float(word >> (BITS * j) & ((1u << (BITS & 15)) - 1u)) * scale + offset;
    }
  }
}
