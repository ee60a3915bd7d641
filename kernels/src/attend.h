// One query row against cached rows: the parts that attend_decode and attend_shared have in common.

// How heads are normed and rotated: `pairs` rotated pairs, of neighbours or of halves. `rotation` holds the cosines of
// all pairs, then their sines; `weights` those of the queries' norm, then of the keys'.
struct attend_turning {
  uint pairs;
  bool neighbours;
  bool normed;
  bool rotate_first;
  float eps;
  const device float* rotation;
  const device float* weights;
};

inline attend_turning attend_turning_of(const device float* step, const device float* form) {
  attend_turning turning;
  turning.eps = form[0];
  turning.rotate_first = form[2] != 0.0f;
  turning.normed = form[3] != 0.0f;
  turning.pairs = uint(form[4]);
  turning.neighbours = form[5] != 0.0f;
  turning.rotation = step + 8;
  turning.weights = form + 8;
  return turning;
}

template <int D> inline void attend_norm(thread float* value, const device float* weight, float eps, uint lane) {
  float squares = 0.0f;
#pragma unroll
  for (int j = 0; j < (D + 31) / 32; j++) squares += value[j] * value[j];
  float inverse = metal::rsqrt(simd_sum(squares) / float(D) + eps);
#pragma unroll
  for (int j = 0; j < (D + 31) / 32; j++) {
    uint i = lane + 32u * uint(j);
    if (i < uint(D)) value[j] *= inverse * weight[i];
  }
}

// Norm and rotate one head, by one simdgroup, and leave it times `factor` in threadgroup memory.
template <int D>
inline void attend_turn(const device float* from, const device float* weight, attend_turning turning, float factor,
                        TG(float) to, uint lane) {
  constexpr int EACH = (D + 31) / 32;
  float value[EACH];
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    uint i = lane + 32u * uint(j);
    value[j] = i < uint(D) ? from[i] : 0.0f;
  }
  if (turning.normed && !turning.rotate_first) attend_norm<D>(value, weight, turning.eps, lane);
#pragma unroll
  for (int j = 0; j < EACH; j++)
    if (lane + 32u * uint(j) < uint(D)) to[lane + 32u * uint(j)] = value[j];
  simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    uint i = lane + 32u * uint(j);
    if (i < 2u * turning.pairs) {
      bool second = turning.neighbours ? (i & 1u) != 0u : i >= turning.pairs;
      uint pair = turning.neighbours ? i >> 1 : second ? i - turning.pairs : i;
      uint other = turning.neighbours ? i ^ 1u : second ? pair : i + turning.pairs;
      float cosine = turning.rotation[pair], sine = turning.rotation[turning.pairs + pair];
      value[j] = value[j] * cosine + (second ? sine : -sine) * to[other];
    }
  }
  if (turning.normed && turning.rotate_first) attend_norm<D>(value, weight, turning.eps, lane);
  simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
  for (int j = 0; j < EACH; j++)
    if (lane + 32u * uint(j) < uint(D)) to[lane + 32u * uint(j)] = value[j] * factor;
}

// The rows that a query sees: `kept` of the buffers, then those of the ring, `count` in all.
template <typename U> struct attend_rows {
  const device U* keys;
  const device U* values;
  const device U* ring_keys;
  const device U* ring_values;
  uint kept;
  uint count;
};

template <int D, typename U>
inline attend_rows<U> attend_seen(const device U* keys, const device U* values, const device U* ring,
                                  const device float* step, uint head, uint heads, uint capacity, uint ring_rows) {
  attend_rows<U> rows;
  const uint first = uint(step[2]), first_around = uint(step[3]);
  uint buffer = (head * capacity + first) * D, around = (head * ring_rows + first_around) * D;
  rows.keys = keys + buffer;
  rows.values = values + buffer;
  rows.ring_keys = ring + around;
  rows.ring_values = ring + heads * ring_rows * D + around;
  rows.kept = uint(step[0]) - first;
  rows.count = rows.kept + uint(step[1]) - first_around;
  return rows;
}

// A lane's share of the queries and of what they have gathered so far.
template <int E, int HEADS> struct attend_share {
  float query[HEADS][E];
  float mixed[HEADS][E];
  float top[HEADS];
  float total[HEADS];
};

template <int LANES, int E, int HEADS>
inline void attend_begin(thread attend_share<E, HEADS>& share, TG(float) queries, uint lane) {
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    share.top[h] = LOWEST_SCORE;
    share.total[h] = 0.0f;
#pragma unroll
    for (int e = 0; e < E; e++) {
      share.query[h][e] = queries[h * LANES * E + int(lane % uint(LANES)) * E + e];
      share.mixed[h][e] = 0.0f;
    }
  }
}

// Take in the STEPS * 32 / LANES rows from `first` on, of which at least one is there.
template <int LANES, int STEPS, int E, int HEADS, typename U>
inline void attend_block(thread attend_share<E, HEADS>& share, attend_rows<U> rows, uint first, uint lane) {
  constexpr int TWINS = LANES / STEPS;  // lanes that come to hold the same score
  constexpr uint D = LANES * E, PER = 32 / LANES;
  const uint part = lane % uint(LANES) * E, own = lane / uint(LANES);
  row_part<E, U> key[STEPS], value[STEPS];
#pragma unroll
  for (int u = 0; u < STEPS; u++) {
    uint at = first + uint(u) * PER + own;
    at = at < rows.count ? at : rows.count - 1u;
    bool kept = at < rows.kept;
    uint from = (kept ? at : at - rows.kept) * D + part;
    row_load((kept ? rows.keys : rows.ring_keys) + from, key[u]);
    row_load((kept ? rows.values : rows.ring_values) + from, value[u]);
  }
  float score[HEADS], weight[HEADS];
  row_scores<LANES, STEPS, HEADS>(&share.query[0][0], key, score, lane);
  const bool there = first + row_of<LANES, STEPS>(lane) < rows.count;
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    float mine = there ? score[h] : LOWEST_SCORE;
    float top = metal::max(share.top[h], simd_max(mine)), shrink = metal::exp(share.top[h] - top);
    weight[h] = metal::exp(mine - top);
    share.top[h] = top;
    share.total[h] = share.total[h] * shrink + weight[h];
#pragma unroll
    for (int e = 0; e < E; e++) share.mixed[h][e] *= shrink;
  }
#pragma unroll
  for (int u = 0; u < STEPS; u++) {
    float feature[E];
    row_unpack(value[u], feature);
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      float each = simd_shuffle(weight[h], ushort(own * uint(LANES) + uint(u * TWINS)));
#pragma unroll
      for (int e = 0; e < E; e++) share.mixed[h][e] += each * feature[e];
    }
  }
}

// Start from one row that lies in threadgroup memory; TWINS as in attend_block.
template <int LANES, int TWINS, int E, int HEADS>
inline void attend_first(thread attend_share<E, HEADS>& share, TG(float) key, TG(float) value, uint lane) {
  const uint part = lane % uint(LANES) * E;
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    float score = 0.0f;
#pragma unroll
    for (int e = 0; e < E; e++) {
      score += share.query[h][e] * key[part + uint(e)];
      share.mixed[h][e] = lane < uint(LANES) ? value[part + uint(e)] : 0.0f;
    }
    row_fold<LANES / 2, 0>::run(&score, lane);
    share.top[h] = score;
    share.total[h] = float(TWINS) / 32.0f;
  }
}

// Leave a simdgroup's sums in threadgroup memory.
template <int LANES, int TWINS, int E, int HEADS>
inline void attend_leave(thread attend_share<E, HEADS>& share, TG(float) mixed, TG(float) top, TG(float) total,
                         uint lane) {
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    float sum = simd_sum(share.total[h]) / float(TWINS);
    if (lane == 0u) {
      top[h] = share.top[h];
      total[h] = sum;
    }
#pragma unroll
    for (int e = 0; e < E; e++) {
      float value = share.mixed[h][e];
#pragma unroll
      for (int o = LANES; o < 32; o *= 2) value += simd_shuffle_xor(value, ushort(o));
      if (lane < uint(LANES)) mixed[(h * LANES + int(lane)) * E + e] = value;
    }
  }
}

// One feature of one head, from all simdgroups.
struct attend_whole {
  float mixed;
  float top;
  float total;
};

// `mixed` is [SIMDGROUPS][HEADS * D], `top` and `total` [SIMDGROUPS][HEADS].
template <int SIMDGROUPS, int HEADS, int D>
inline attend_whole attend_join(TG(float) mixed, TG(float) top, TG(float) total, uint cell) {
  attend_whole whole;
  const uint head = cell / uint(D);
  whole.mixed = 0.0f;
  whole.total = 0.0f;
  whole.top = LOWEST_SCORE;
#pragma unroll
  for (int s = 0; s < SIMDGROUPS; s++) whole.top = metal::max(whole.top, top[uint(s * HEADS) + head]);
#pragma unroll
  for (int s = 0; s < SIMDGROUPS; s++) {
    float shrink = metal::exp(top[uint(s * HEADS) + head] - whole.top);
    whole.mixed += shrink * mixed[uint(s * HEADS * D) + cell];
    whole.total += shrink * total[uint(s * HEADS) + head];
  }
  whole.mixed = whole.total > 0.0f ? whole.mixed / whole.total : 0.0f;
  return whole;
}

// Put one feature of one head into `parts`: [S, H, D] of mixed, then [S, H, 2] of statistics; `to` is in [S H].
template <int D>
inline void attend_put(device float* parts, attend_whole whole, float value_scale, uint to, uint all, uint feature) {
  parts[to * uint(D) + feature] = whole.mixed * value_scale;
  if (feature == 0u) {
    parts[all * uint(D) + 2u * to] = whole.top;
    parts[all * uint(D) + 2u * to + 1u] = whole.total;
  }
}
