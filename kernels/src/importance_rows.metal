// The mean over heads of each key's probability, from what importance_stats found; scores are made a second time.
// A threadgroup takes one block of rows, and its simdgroups share the sets of HEADS heads.
constexpr int E = D / LANES;
constexpr uint BLOCK = STEPS * 32 / LANES;
threadgroup float sums[SIMDGROUPS][32];

const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint heads = queries_shape[1], kv_heads = keys_shape[1], group = heads / kv_heads, count = keys_shape[2];
const uint sets = (group + HEADS - 1u) / HEADS, splits = stats_shape[0], row_stride = keys_strides[2];
const uint at = threadgroup_position_in_grid.x * BLOCK, row = row_of<LANES, STEPS>(lane);

float mean = 0.0f;
for (uint part = simdgroup; part < kv_heads * sets; part += SIMDGROUPS) {
  const uint kv_head = part / sets, first = kv_head * group + part % sets * HEADS;
  row_part<E, K> key[STEPS];
  float query[HEADS * E], score[HEADS];
  importance_keys<LANES, STEPS>(keys + kv_head * uint(keys_strides[1]), row_stride, at, count, key, lane);
  importance_queries<LANES, E, HEADS>(queries, uint(queries_strides[1]), first, kv_head * group + group - 1u,
                                      constants[0], query, lane);
  row_scores<LANES, STEPS, HEADS>(query, key, score, lane);
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    if (first + h < kv_head * group + group) {
      // There are at most 32 splits: a lane takes one.
      uint from = 2u * ((lane < splits ? lane : 0u) * heads + first + h);
      float top = simd_max(stats[from]);
      float total = simd_sum(lane < splits ? stats[from + 1u] * metal::exp(stats[from] - top) : 0.0f);
      mean += metal::exp(score[h] - top) / total;
    }
  }
}
sums[simdgroup][row] = mean;
threadgroup_barrier(mem_flags::mem_threadgroup);

const uint index = thread_index_in_threadgroup;
if (index < BLOCK && at + index < count) {
  float sum = 0.0f;
  for (int s = 0; s < SIMDGROUPS; s++) sum += sums[s][index];
  importance[at + index] = sum / float(heads);
}
