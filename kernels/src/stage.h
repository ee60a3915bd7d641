// One row of x times a norm's gain into threadgroup memory, as matvec.h's products want it.

// `blocks` blocks of x from `start` on, by all threads of the group; returns the squares that this thread saw, before
// the gain. What is past the end is 0.
template <typename T, int BITS>
inline float stage_gained(const device float* x, const device T* gain, uint k, uint start, uint blocks, uint index,
                          uint threads, TG(float) waiting) {
  constexpr uint CHUNK = packing<BITS>::CHUNK, PITCH = packing<BITS>::PITCH;
  float squares = 0.0f;
  for (uint i = 4u * index; i < blocks * uint(packing<BITS>::BLOCK); i += 4u * threads) {
    const uint at = start + i;
    float value[4], factor[4];
    for (int j = 0; j < 4; j++) value[j] = 0.0f;
    if (at < k) {
      load_four<float>(x + at, value);
      load_four<T>(gain + at, factor);
      for (int j = 0; j < 4; j++) {
        squares += value[j] * value[j];
        value[j] *= factor[j];
      }
    }
    for (int j = 0; j < 4; j++) waiting[i / CHUNK * PITCH + i % CHUNK + uint(j)] = value[j];
  }
  return squares;
}
