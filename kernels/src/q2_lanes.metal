// x [R, K] times balanced 2-bit w [N, K], by scalar products: each simdgroup makes OUTPUTS outputs for ROWS input rows,
// a lane taking every 32nd word of K. G: weights a scale, 0 for one scale an output. SIMDGROUPS in a threadgroup.
const uint lane = thread_index_in_simdgroup;
const uint n = w_shape[0], words = w_shape[1], k = words * 16u, rows = x_shape[0];
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * OUTPUTS;
const uint first_row = threadgroup_position_in_grid.y * ROWS;
const uint groups = G == 0 ? 1u : k / uint(G == 0 ? 1 : G);

float sum[OUTPUTS][ROWS];
for (int o = 0; o < OUTPUTS; o++)
  for (int r = 0; r < ROWS; r++) sum[o][r] = 0.0f;

for (uint at = lane; at < words; at += 32u) {
  float value[ROWS][16], total[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    uint row = first_row + r < rows ? first_row + r : rows - 1u;
    total[r] = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      value[r][i] = float(x[row * k + at * 16u + i]);
      total[r] += value[r][i];
    }
  }
#pragma unroll
  for (int o = 0; o < OUTPUTS; o++) {
    uint output = first + o < n ? first + o : n - 1u;
    float scale = G == 0 ? 1.0f : float(scales[output * groups + at * 16u / uint(G == 0 ? 1 : G)]);
    float level[16];
    q2_unpack(w[output * words + at], level);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      // q - 1.5 = 4 (1 + q / 4) - 5.5, and the constant leaves the sum.
      float product = 0.0f;
#pragma unroll
      for (int i = 0; i < 16; i++) product += level[i] * value[r][i];
      sum[o][r] += scale * (4.0f * product - 5.5f * total[r]);
    }
  }
}

for (int o = 0; o < OUTPUTS; o++)
  for (int r = 0; r < ROWS; r++) {
    float total = simd_sum(sum[o][r]);
    if (lane == 0 && first + o < n && first_row + r < rows) {
      if (G == 0) total *= float(scales[first + o]);
      out[(first_row + r) * n + first + o] = T(total);
    }
  }
