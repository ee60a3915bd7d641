// The last query's scores: what importance_stats and importance_rows have in common.

// A lane's share of the queries of HEADS heads from `first` on, times the softmax scale; past the last one, of that.
template <int LANES, int E, int HEADS, typename T>
inline void importance_queries(const device T* queries, uint stride, uint first, uint last, float scale,
                               thread float* query, uint lane) {
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    uint head = first + uint(h) < last ? first + uint(h) : last;
    const device T* from = queries + head * stride + lane % uint(LANES) * E;
#pragma unroll
    for (int e = 0; e < E; e++) query[h * E + e] = float(from[e]) * scale;
  }
}

// A lane's share of the STEPS * 32 / LANES keys from row `at` on; past the last row, of that.
template <int LANES, int STEPS, int E, typename U>
inline void importance_keys(const device U* keys, uint stride, uint at, uint count, thread row_part<E, U>* key,
                            uint lane) {
#pragma unroll
  for (int u = 0; u < STEPS; u++) {
    uint row = at + uint(u * (32 / LANES)) + lane / uint(LANES);
    row_load(keys + (row < count ? row : count - 1u) * stride + lane % uint(LANES) * E, key[u]);
  }
}
