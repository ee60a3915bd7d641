// y = W x + bias, plus the residual where there is one. A simdgroup makes OUTPUTS results; its lanes share K.
constexpr int CHUNK = packing<BITS>::CHUNK;
const uint lane = thread_index_in_simdgroup, k = x_shape[0], n = w_shape[0];
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * OUTPUTS;

uint row[OUTPUTS];
float sum[OUTPUTS];
for (int o = 0; o < OUTPUTS; o++) {
  row[o] = first + o < n ? first + o : n - 1u;
  sum[o] = 0.0f;
}

for (uint at = lane; at < k / uint(CHUNK); at += 32u) {
  float values[CHUNK];
  load_values<float, CHUNK>(x + at * CHUNK, values);
  add_products<T, BITS, G, BALANCED, OUTPUTS>((const device uint*)w, scales, offsets, k, at, row, values, sum);
}

for (int o = 0; o < OUTPUTS; o++) {
  float total = simd_sum(sum[o]);
  if (BIAS) total += float(bias[row[o]]);
  if (RESIDUAL) total += residual[row[o]];
  if (lane == 0 && first + o < n) out[first + o] = total;
}
