// Each head's highest score and its sum of exponentials, over a share of the keys.
// Threadgroups: (splits, KV heads, sets of HEADS heads).
constexpr int E = D / LANES;
constexpr uint BLOCK = STEPS * 32 / LANES;
threadgroup float tops[SIMDGROUPS][HEADS], totals[SIMDGROUPS][HEADS];

const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint split = threadgroup_position_in_grid.x, splits = threadgroups_per_grid.x;
const uint kv_head = threadgroup_position_in_grid.y, heads = queries_shape[1], group = heads / keys_shape[1];
const uint first = threadgroup_position_in_grid.z * HEADS, count = keys_shape[2], row_stride = keys_strides[2];
const auto head_keys = keys + kv_head * uint(keys_strides[1]);

float query[HEADS * E], top[HEADS], total[HEADS];
importance_queries<LANES, E, HEADS>(queries, uint(queries_strides[1]), kv_head * group + first,
                                    kv_head * group + group - 1u, constants[0], query, lane);
for (int h = 0; h < HEADS; h++) {
  top[h] = LOWEST_SCORE;
  total[h] = 0.0f;
}
for (uint at = (split * SIMDGROUPS + simdgroup) * BLOCK; at < count; at += splits * SIMDGROUPS * BLOCK) {
  row_part<E, K> key[STEPS];
  float score[HEADS];
  importance_keys<LANES, STEPS>(head_keys, row_stride, at, count, key, lane);
  row_scores<LANES, STEPS, HEADS>(query, key, score, lane);
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    float mine = at + row_of<LANES, STEPS>(lane) < count ? score[h] : LOWEST_SCORE;
    float higher = metal::max(top[h], simd_max(mine));
    total[h] = total[h] * metal::exp(top[h] - higher) + metal::exp(mine - higher);
    top[h] = higher;
  }
}
#pragma unroll
for (int h = 0; h < HEADS; h++) {
  float sum = simd_sum(total[h]) / float(LANES / STEPS);
  if (lane == 0u) {
    tops[simdgroup][h] = top[h];
    totals[simdgroup][h] = sum;
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);

const uint h = thread_index_in_threadgroup;
if (h < HEADS && first + h < group) {
  float highest = LOWEST_SCORE, sum = 0.0f;
  for (int s = 0; s < SIMDGROUPS; s++) highest = metal::max(highest, tops[s][h]);
  for (int s = 0; s < SIMDGROUPS; s++) sum += totals[s][h] * metal::exp(tops[s][h] - highest);
  const uint to = 2u * (split * heads + kv_head * group + first + h);
  stats[to] = highest;
  stats[to + 1u] = sum;
}
