// y = W x + bias, plus the residual where there is one, where x [H D] are attention's heads, merged from S parts: each
// is mixed [S, H, D] by its own softmax, of which stats [S, H, 2] holds the largest score and the sum.
constexpr int CHUNK = packing<BITS>::CHUNK;
threadgroup float share[PARTS];
const uint lane = thread_index_in_simdgroup, n = w_shape[0];
const uint splits = mixed_shape[0], heads = mixed_shape[1], dim = mixed_shape[2], k = heads * dim;
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * OUTPUTS;

for (uint head = thread_index_in_threadgroup; head < heads; head += SIMDGROUPS * 32u) {
  float largest = stats[2u * head], total = 0.0f;
  for (uint s = 1; s < splits; s++) largest = metal::max(largest, stats[2u * (s * heads + head)]);
  for (uint s = 0; s < splits; s++) {
    const uint part = s * heads + head;
    share[part] = metal::exp(stats[2u * part] - largest) * stats[2u * part + 1u];
    total += share[part];
  }
  for (uint s = 0; s < splits; s++) share[s * heads + head] /= total;
}
threadgroup_barrier(mem_flags::mem_threadgroup);

uint row[OUTPUTS];
float sum[OUTPUTS];
for (int o = 0; o < OUTPUTS; o++) {
  row[o] = first + o < n ? first + o : n - 1u;
  sum[o] = 0.0f;
}

for (uint at = lane; at < k / uint(CHUNK); at += 32u) {
  const uint head = at * uint(CHUNK) / dim;
  float values[CHUNK];
#pragma unroll
  for (int i = 0; i < CHUNK; i++) values[i] = 0.0f;
  for (uint s = 0; s < splits; s++) {
    float part[CHUNK];
    load_values<float, CHUNK>(mixed + s * k + at * CHUNK, part);
    const float weight = share[s * heads + head];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) values[i] += weight * part[i];
  }
  add_products<T, BITS, G, BALANCED, OUTPUTS>((const device uint*)w, scales, offsets, k, at, row, values, sum);
}

for (int o = 0; o < OUTPUTS; o++) {
  float total = simd_sum(sum[o]);
  if (BIAS) total += float(bias[row[o]]);
  if (RESIDUAL) total += residual[row[o]];
  if (lane == 0 && first + o < n) out[first + o] = total;
}
