// y = W x + bias, plus the residual where there is one, where x [K] are attention's heads of D features, merged from
// SPLITS parts: mixed [SPLITS, K] by a softmax each, then [SPLITS, heads, 2], the largest score and the sum of each.
constexpr int CHUNK = packing<BITS>::CHUNK, PITCH = packing<BITS>::PITCH;
constexpr uint BLOCK = packing<BITS>::BLOCK, THREADS = 32 * SIMDGROUPS, HEADS = K / D;
constexpr uint BLOCKS = (uint(K) + BLOCK - 1u) / BLOCK;
threadgroup float share[SPLITS][HEADS];
threadgroup float4 staged[BLOCKS * 8 * PITCH];
TG(float) waiting = (TG(float))staged;
const uint lane = thread_index_in_simdgroup, index = thread_index_in_threadgroup, k = K, n = sheet_shape[0];
const device uint* w = (const device uint*)sheet;
const sheet_parts parts_at = sheet_of<T, BITS, G, BALANCED, BIAS>(sheet_shape[0], k);
const device T* scales = (const device T*)(w + parts_at.scales);
const device T* offsets = (const device T*)(w + parts_at.offsets);
const device T* bias = (const device T*)(w + parts_at.bias);
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * OUTPUTS;
const device float* stats = parts + SPLITS * K;

uint row[OUTPUTS];
float sum[OUTPUTS];
for (int o = 0; o < OUTPUTS; o++) {
  row[o] = first + o < n ? first + o : n - 1u;
  sum[o] = 0.0f;
}
chunk_rows<T, BITS, OUTPUTS> rows;
fetch<T, BITS, G, BALANCED, OUTPUTS>(w, scales, offsets, k, lane, row, rows);

for (uint head = index; head < HEADS; head += THREADS) {
  float top[SPLITS], total[SPLITS], largest, whole = 0.0f;
#pragma unroll
  for (int s = 0; s < SPLITS; s++) {
    top[s] = stats[2u * (uint(s) * HEADS + head)];
    total[s] = stats[2u * (uint(s) * HEADS + head) + 1u];
  }
  largest = top[0];
#pragma unroll
  for (int s = 1; s < SPLITS; s++) largest = metal::max(largest, top[s]);
#pragma unroll
  for (int s = 0; s < SPLITS; s++) {
    total[s] *= metal::exp(top[s] - largest);
    whole += total[s];
  }
#pragma unroll
  for (int s = 0; s < SPLITS; s++) share[s][head] = total[s] / whole;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (uint i = index; i < BLOCKS * BLOCK; i += THREADS) {
  float part[SPLITS], value = 0.0f;
  if (i < k) {
#pragma unroll
    for (int s = 0; s < SPLITS; s++) part[s] = parts[uint(s) * k + i];
#pragma unroll
    for (int s = 0; s < SPLITS; s++) value += share[s][i / uint(D)] * part[s];
  }
  waiting[i / uint(CHUNK) * uint(PITCH) + i % uint(CHUNK)] = value;
}
threadgroup_barrier(mem_flags::mem_threadgroup);

multiply_stage<T, BITS, G, BALANCED, OUTPUTS>(rows, w, scales, offsets, k, 0u, BLOCKS, row, waiting, lane, sum);

for (int o = 0; o < OUTPUTS; o++) {
  float total = simd_sum(sum[o]);
  if (BIAS) total += float(bias[row[o]]);
#ifdef RESIDUAL
  total += residual[row[o]];
#endif
  if (lane == 0 && first + o < n) out[first + o] = total;
}
