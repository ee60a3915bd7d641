// Sigmoid attention of one row over N keys, which all are seen. A threadgroup has HEADS query heads that share keys and
// values, and one of the equal parts of the keys that out [parts, B, H, 1, D] has. LANES lanes share a key, and each has
// CHUNKS runs of its 8 elements; a simdgroup reads LOADS keys a lane before it uses them. P: what out holds.
constexpr uint EACH = 32 / LANES;
constexpr int SIZE = 8 * CHUNKS;
threadgroup float partial[SIMDGROUPS][HEADS * D];

const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint heads = queries_shape[1], n = keys_shape[2], parts = threadgroups_per_grid.y;
const uint first_head = threadgroup_position_in_grid.x * HEADS, batch = threadgroup_position_in_grid.z;
const uint kv_head = first_head / (heads / uint(keys_shape[1]));
const uint span = (n + parts - 1u) / parts, begin = threadgroup_position_in_grid.y * span;
const uint end = begin + span < n ? begin + span : n;
const uint own = lane % LANES * 8u, which = lane / LANES;
const device T* key_rows = keys + (batch * keys_strides[0] + kv_head * keys_strides[1] + own);
const device T* value_rows = values + (batch * values_strides[0] + kv_head * values_strides[1] + own);
const uint key_stride = uint(keys_strides[2]), value_stride = uint(values_strides[2]);
const float offset = sigmoid_offset(rule[1], rule[2], n);

float query[HEADS][SIZE], sum[HEADS][SIZE];
#pragma unroll
for (int h = 0; h < HEADS; h++) {
  const device T* row = queries + (batch * queries_strides[0] + (first_head + h) * queries_strides[1] + own);
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    run_8<T> run;
    load_8(row + c * LANES * 8, run);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      query[h][8 * c + i] = -1.44269504f * rule[0] * float(run.value[i]);
      sum[h][8 * c + i] = 0.0f;
    }
  }
}

#pragma unroll 1
for (uint at = begin + simdgroup * EACH * LOADS; at < end; at += SIMDGROUPS * EACH * LOADS) {
  run_8<T> key_run[LOADS][CHUNKS], value_run[LOADS][CHUNKS];
#pragma unroll
  for (int l = 0; l < LOADS; l++) {
    const uint key = at + l * EACH + which, row = key < n ? key : n - 1u;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      load_8(key_rows + (row * key_stride + c * LANES * 8), key_run[l][c]);
      load_8(value_rows + (row * value_stride + c * LANES * 8), value_run[l][c]);
    }
  }
#pragma unroll
  for (int l = 0; l < LOADS; l++) {
    const bool seen = at + l * EACH + which < end;
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      float score = 0.0f;
#pragma unroll
      for (int i = 0; i < SIZE; i++) score += query[h][i] * float(key_run[l][i / 8].value[i % 8]);
#pragma unroll
      for (int other = 1; other < LANES; other *= 2) score += simd_shuffle_xor(score, ushort(other));
      const float weight = seen ? scaled_sigmoid(score + offset) : 0.0f;
#pragma unroll
      for (int i = 0; i < SIZE; i++) sum[h][i] += weight * float(value_run[l][i / 8].value[i % 8]);
    }
  }
}

#pragma unroll
for (int h = 0; h < HEADS; h++)
#pragma unroll
  for (int i = 0; i < SIZE; i++) {
    float total = sum[h][i];
#pragma unroll
    for (int other = LANES; other < 32; other *= 2) total += simd_shuffle_xor(total, ushort(other));
    if (which == 0) partial[simdgroup][h * D + (i / 8) * LANES * 8 + own + i % 8] = total;
  }
threadgroup_barrier(mem_flags::mem_threadgroup);

const uint to = ((threadgroup_position_in_grid.y * threadgroups_per_grid.z + batch) * heads + first_head) * D;
for (uint cell = thread_index_in_threadgroup; cell < HEADS * D; cell += SIMDGROUPS * 32u) {
  float total = 0.0f;
  for (int s = 0; s < SIMDGROUPS; s++) total += partial[s][cell];
  out[to + cell] = P(total * (1.0f / 4096.0f));
}
