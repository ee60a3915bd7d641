// The sum of `count` over the lanes up to this one.
inline uint count_up_to(uint count, uint lane) {
  for (uint step = 1; step < 32u; step <<= 1) {
    const uint other = simd_shuffle(count, ushort(lane >= step ? lane - step : lane));
    count += lane >= step ? other : 0u;
  }
  return count;
}
