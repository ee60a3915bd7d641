// Attention of one new row: its queries and key are normed and rotated, its key and value join the ring, and the
// queries of HEADS heads meet a share of the rows. Threadgroups: (splits, KV heads, sets of HEADS heads).
constexpr int E = D / LANES, TWINS = LANES / STEPS;
constexpr uint BLOCK = STEPS * 32 / LANES, THREADS = 32 * SIMDGROUPS;
threadgroup float turned[HEADS + 2][D];  // the queries, the new key, the new value
threadgroup float mixes[SIMDGROUPS][HEADS * D];
threadgroup float tops[SIMDGROUPS][HEADS], totals[SIMDGROUPS][HEADS];

const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint index = thread_index_in_threadgroup;
const uint split = threadgroup_position_in_grid.x, splits = threadgroups_per_grid.x;
const uint kv_head = threadgroup_position_in_grid.y, kv_heads = keys_shape[1];
const uint first = threadgroup_position_in_grid.z * HEADS;
const uint ring_rows = recent_shape[2], heads = qkv_shape[0] / uint(D) - 2u * kv_heads, group = heads / kv_heads;
const bool adds = split + 1u == splits;
const float key_scale = form[6], value_scale = form[7];

const attend_turning turning = attend_turning_of(step, form);
for (uint h = simdgroup; h < HEADS + (adds ? 1u : 0u); h += SIMDGROUPS) {
  if (h < HEADS) {
    uint head = first + h < group ? first + h : group - 1u;
    attend_turn<D>(qkv + (kv_head * group + head) * D, turning.weights, turning, form[1] * key_scale, &turned[h][0],
                   lane);
  } else {
    attend_turn<D>(qkv + (heads + kv_head) * D, turning.weights + D, turning, 1.0f, &turned[h][0], lane);
  }
}
const uint words = ring_rows * D * sizeof(recent[0]) / 4u, at_row = uint(step[1]);
if (first == 0u) {
  const uint width = D * sizeof(recent[0]) / 4u;
  for (uint i = split * THREADS + index; i < 2u * words; i += splits * THREADS) {
    uint to = (i / words * kv_heads + kv_head) * words + i % words;
    if (i % words / width != at_row) ((device uint*)recent_out)[to] = ((const device uint*)recent)[to];
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);

if (adds) {
  for (uint i = index; i < D; i += THREADS) {
    float key = turned[HEADS][i] / key_scale;
    float value = qkv[(heads + kv_heads + kv_head) * D + i] / value_scale;
    const auto key_kept = row_feature(keys, key), value_kept = row_feature(values, value);
    turned[HEADS][i] = float(key_kept);
    turned[HEADS + 1][i] = float(value_kept);
    if (first == 0u) {
      recent_out[(kv_head * ring_rows + at_row) * D + i] = key_kept;
      recent_out[((kv_heads + kv_head) * ring_rows + at_row) * D + i] = value_kept;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

attend_share<E, HEADS> share;
attend_begin<LANES>(share, &turned[0][0], lane);
if (adds && simdgroup + 1u == SIMDGROUPS)
  attend_first<LANES, TWINS>(share, &turned[HEADS][0], &turned[HEADS + 1][0], lane);
const auto rows = attend_seen<D>(keys, values, recent, step, kv_head, kv_heads, keys_shape[2], ring_rows);
for (uint at = (split * SIMDGROUPS + simdgroup) * BLOCK; at < rows.count; at += splits * SIMDGROUPS * BLOCK)
  attend_block<LANES, STEPS>(share, rows, at, lane);
attend_leave<LANES, TWINS>(share, &mixes[simdgroup][0], &tops[simdgroup][0], &totals[simdgroup][0], lane);
threadgroup_barrier(mem_flags::mem_threadgroup);

for (uint cell = index; cell < HEADS * D; cell += THREADS) {
  uint head = first + cell / D, to = split * heads + kv_head * group + head;
  if (head < group) {
    const auto whole = attend_join<SIMDGROUPS, HEADS, D>(&mixes[0][0], &tops[0][0], &totals[0][0], cell);
    attend_put<D>(parts, whole, value_scale, to, splits * heads, cell % D);
  }
}
