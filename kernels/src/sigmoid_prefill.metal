// Causal sigmoid attention of the last R of N rows: out [B, R, H, D]. A threadgroup has SIMDGROUPS * TILES * 16 query
// rows of one head and goes through the keys that they see, KEYS at a time, BUFFERS such blocks in threadgroup memory.
// A simdgroup has TILES * 16 of the rows; it scores STEP keys and adds their values before it goes on.
constexpr uint RUNS = D / 8, STRIDE = RUNS + 1;  // the run between rows keeps a matrix's rows in different banks
constexpr int DEPTH = D / 16, SUB = STEP / 16;
threadgroup run_8<T> staged_keys[BUFFERS][KEYS * STRIDE];
threadgroup run_8<T> staged_values[BUFFERS][KEYS * STRIDE];

const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint heads = queries_shape[1], rows = queries_shape[2], n = keys_shape[2], hidden = n - rows;
const uint head = threadgroup_position_in_grid.y, batch = threadgroup_position_in_grid.z;
const uint kv_head = head / (heads / uint(keys_shape[1]));
// The blocks with the most keys go first.
const uint block_rows = SIMDGROUPS * TILES * 16u, block = threadgroups_per_grid.x - 1u - threadgroup_position_in_grid.x;
const uint first = block * block_rows + simdgroup * TILES * 16u;
const uint end_row = (block + 1u) * block_rows < rows ? (block + 1u) * block_rows : rows;
const uint key_blocks = (hidden + end_row + KEYS - 1u) / KEYS;
const device T* query_rows = queries + (batch * queries_strides[0] + head * queries_strides[1]);
const device T* key_rows = keys + (batch * keys_strides[0] + kv_head * keys_strides[1]);
const device T* value_rows = values + (batch * values_strides[0] + kv_head * values_strides[1]);
const uint key_stride = uint(keys_strides[2]), value_stride = uint(values_strides[2]);
const float factor = -1.44269504f * rule[0];

left_16<T> query[TILES][DEPTH];
float offset[TILES][2];
#pragma unroll
for (int t = 0; t < TILES; t++) {
  const uint row = first + 16u * t + tile_output(lane);
  const uint low = row < rows ? row : rows - 1u, high = row + 8u < rows ? row + 8u : rows - 1u;
  const device T* low_row = query_rows + low * queries_strides[2];
  const device T* high_row = query_rows + high * queries_strides[2];
  offset[t][0] = sigmoid_offset(rule[1], rule[2], hidden + low + 1u);
  offset[t][1] = sigmoid_offset(rule[1], rule[2], hidden + high + 1u);
#pragma unroll
  for (int d = 0; d < DEPTH; d++) {
    float value[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint at = 16u * d + tile_row(lane) + 8u * (i >> 2) + (i & 1);
      value[i] = float((i & 2) ? high_row[at] : low_row[at]);
    }
    left_of(query[t][d], value);
  }
}

float sum[TILES][DEPTH][8];
#pragma unroll
for (int t = 0; t < TILES; t++)
  for (int d = 0; d < DEPTH; d++)
    for (int i = 0; i < 8; i++) sum[t][d][i] = 0.0f;

#pragma unroll 1
for (uint j = 0; j < key_blocks + (BUFFERS - 1u); j++) {
  const uint buffer = BUFFERS == 1 ? 0u : j & 1u;
  if (BUFFERS == 1 && j > 0u) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (BUFFERS == 2) {
    stage_wait();
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (j < key_blocks) {
#pragma unroll
    for (uint i = 0; i < KEYS * RUNS; i += SIMDGROUPS * 32u) {
      const uint at = i + simdgroup * 32u + lane, row = at / RUNS, run = at % RUNS;
      const uint key = j * KEYS + row < n ? j * KEYS + row : n - 1u;
      if (at < KEYS * RUNS) {
        stage_8(&staged_keys[buffer][row * STRIDE + run], key_rows + (key * key_stride + 8u * run));
        stage_8(&staged_values[buffer][row * STRIDE + run], value_rows + (key * value_stride + 8u * run));
      }
    }
  }
  if (BUFFERS == 1) {
    stage_wait();
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  // With two buffers, this block's keys and values arrive while the last one's are multiplied.
  if (BUFFERS == 2 && j == 0u) continue;
  const uint begin = (j - (BUFFERS - 1u)) * KEYS, from = BUFFERS == 1 ? 0u : buffer ^ 1u;
#pragma unroll
  for (uint step = 0; step < KEYS; step += STEP) {
    // No row of this simdgroup sees these keys.
    if (begin + step > hidden + first + (TILES * 16u - 1u)) continue;
    float score[TILES][SUB][8];
#pragma unroll
    for (int t = 0; t < TILES; t++)
      for (int u = 0; u < SUB; u++)
        for (int i = 0; i < 8; i++) score[t][u][i] = 0.0f;
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
#pragma unroll
      for (int u = 0; u < SUB; u++) {
        right_16<T> right;
        right_of_columns(right, &staged_keys[from][(step + 16u * u) * STRIDE + 2u * d], STRIDE, lane);
#pragma unroll
        for (int t = 0; t < TILES; t++) multiply_16(score[t][u], query[t][d], right);
      }
    const bool all_seen = begin + step + STEP <= hidden + first + 1u;
    left_16<T> weight[TILES][SUB];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int u = 0; u < SUB; u++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const uint key = begin + step + 16u * u + tile_row(lane) + 8u * (i >> 2) + (i & 1);
          const uint row = first + 16u * t + tile_output(lane) + 4u * (i & 2);
          const float value = scaled_sigmoid(factor * score[t][u][i] + offset[t][(i >> 1) & 1]);
          score[t][u][i] = all_seen || key <= hidden + row ? value : 0.0f;
        }
        left_of(weight[t][u], score[t][u]);
      }
#pragma unroll
    for (int u = 0; u < SUB; u++)
#pragma unroll
      for (int d = 0; d < DEPTH; d++) {
        right_16<T> right;
        right_of_rows(right, &staged_values[from][(step + 16u * u) * STRIDE + 2u * d], STRIDE, lane);
#pragma unroll
        for (int t = 0; t < TILES; t++) multiply_16(sum[t][d], weight[t][u], right);
      }
  }
}

#pragma unroll
for (int t = 0; t < TILES; t++)
#pragma unroll
  for (int d = 0; d < DEPTH; d++)
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint row = first + 16u * t + tile_output(lane) + 4u * (i & 2);
      const uint at = 16u * d + tile_row(lane) + 8u * (i >> 2) + (i & 1);
      if (row < rows) out[((batch * rows + row) * heads + head) * D + at] = T(sum[t][d][i] * (1.0f / 4096.0f));
    }
