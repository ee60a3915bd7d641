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
  return fma_pair<T>((shifted & MASK) | ONE, SCALE, OFFSET);
}

// One word of each of a lane's two outputs against TILES input tiles; product is [PARTS][TILES][4].
template <typename T, int PARTS, int TILES, int J>
inline void q2_tiles_step(thread float* product, thread tile_x<T>* tile, uint low, uint high) {
  weight_pair<T> low_levels[2] = {q2_levels<T, J>(low), q2_levels<T, J + 1>(low)};
  weight_pair<T> high_levels[2] = {q2_levels<T, J>(high), q2_levels<T, J + 1>(high)};
#pragma unroll
  for (int i = 0; i < PARTS * TILES; i++) tile_multiply<T>(product + 4 * i, low_levels, high_levels, tile[i], J);
}

template <typename T, int PARTS, int TILES>
inline void q2_tiles_multiply(thread float* product, thread tile_x<T>* tile, uint low, uint high, uint lane) {
  tile_x<T> part[PARTS * TILES];
#pragma unroll
  for (int p = 0; p < PARTS; p++)
    for (int t = 0; t < TILES; t++) {
      part[p * TILES + t] = tile[t];
      if (PARTS != 1) part[p * TILES + t] = tile_keep(tile[t], uint(p), lane);
    }
  q2_tiles_step<T, PARTS, TILES, 0>(product, part, low, high);
  q2_tiles_step<T, PARTS, TILES, 2>(product, part, low, high);
  q2_tiles_step<T, PARTS, TILES, 4>(product, part, low, high);
  q2_tiles_step<T, PARTS, TILES, 6>(product, part, low, high);
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
