// Attention of one new row in a layer that reads another layer's rows, the new row's own among them: as attend_decode,
// without a key and a value to make. Threadgroups: (splits, KV heads, sets of HEADS heads).
constexpr int E = D / LANES, TWINS = LANES / STEPS;
constexpr uint BLOCK = STEPS * 32 / LANES, THREADS = 32 * SIMDGROUPS;
threadgroup float turned[HEADS][D];
threadgroup float mixes[SIMDGROUPS][HEADS * D];
threadgroup float tops[SIMDGROUPS][HEADS], totals[SIMDGROUPS][HEADS];

const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint split = threadgroup_position_in_grid.x, splits = threadgroups_per_grid.x;
const uint kv_head = threadgroup_position_in_grid.y, kv_heads = keys_shape[1];
const uint first = threadgroup_position_in_grid.z * HEADS;
const uint heads = qkv_shape[0] / uint(D), group = heads / kv_heads;

const attend_turning turning = attend_turning_of(step, form);
for (uint h = simdgroup; h < HEADS; h += SIMDGROUPS) {
  uint head = first + h < group ? first + h : group - 1u;
  attend_turn<D>(qkv + (kv_head * group + head) * D, turning.weights, turning, form[1] * form[6], &turned[h][0], lane);
}
threadgroup_barrier(mem_flags::mem_threadgroup);

attend_share<E, HEADS> share;
attend_begin<LANES>(share, &turned[0][0], lane);
auto rows = attend_seen<D>(keys, values, recent, step, kv_head, kv_heads, keys_shape[2], recent_shape[2]);
rows.count += 1u;
for (uint at = (split * SIMDGROUPS + simdgroup) * BLOCK; at < rows.count; at += splits * SIMDGROUPS * BLOCK)
  attend_block<LANES, STEPS>(share, rows, at, lane);
attend_leave<LANES, TWINS>(share, &mixes[simdgroup][0], &tops[simdgroup][0], &totals[simdgroup][0], lane);
threadgroup_barrier(mem_flags::mem_threadgroup);

for (uint cell = thread_index_in_threadgroup; cell < HEADS * D; cell += THREADS) {
  uint head = first + cell / D, to = split * heads + kv_head * group + head;
  if (head < group) {
    const auto whole = attend_join<SIMDGROUPS, HEADS, D>(&mixes[0][0], &tops[0][0], &totals[0][0], cell);
    attend_put<D>(parts, whole, form[7], to, splits * heads, cell % D);
  }
}
