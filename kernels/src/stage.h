// One row of x times a norm's gain into threadgroup memory, as matvec.h's products want it.

// Number i of the stage and the three after it.
template <int BITS> inline void stage_four(TG(float) waiting, uint i, thread const float* value) {
  constexpr uint CHUNK = packing<BITS>::CHUNK, PITCH = packing<BITS>::PITCH;
  for (int j = 0; j < 4; j++) waiting[i / CHUNK * PITCH + i % CHUNK + uint(j)] = value[j];
}

// Multiplies four numbers by their gains; returns the sum of their squares before.
template <typename T> inline float gain_four(const device T* gain, thread float* value) {
  float factor[4], squares = 0.0f;
  load_four<T>(gain, factor);
  for (int j = 0; j < 4; j++) {
    squares += value[j] * value[j];
    value[j] *= factor[j];
  }
  return squares;
}

// `blocks` blocks of x from `start` on, by all threads of the group; returns the squares that this thread saw, before
// the gain. What is past the end is 0.
template <typename T, int BITS>
inline float stage_gained(const device float* x, const device T* gain, uint k, uint start, uint blocks, uint index,
                          uint threads, TG(float) waiting) {
  float squares = 0.0f;
  for (uint i = 4u * index; i < blocks * uint(packing<BITS>::BLOCK); i += 4u * threads) {
    float value[4];
    for (int j = 0; j < 4; j++) value[j] = 0.0f;
    if (start + i < k) {
      load_four<float>(x + start + i, value);
      squares += gain_four<T>(gain + start + i, value);
    }
    stage_four<BITS>(waiting, i, value);
  }
  return squares;
}
