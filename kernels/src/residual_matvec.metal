// y = W x + bias, plus the residual where there is one. A simdgroup makes OUTPUTS results; its lanes share K.
constexpr uint BLOCK = packing<BITS>::BLOCK, STAGE = STAGES * BLOCK, THREADS = 32 * SIMDGROUPS;
threadgroup float4 staged[STAGES * 8 * packing<BITS>::PITCH];
TG(float) waiting = (TG(float))staged;
const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint index = thread_index_in_threadgroup, k = x_shape[0], n = sheet_shape[0];
const device uint* w = (const device uint*)sheet;
const sheet_parts parts_at = sheet_of<T, BITS, G, BALANCED, BIAS>(sheet_shape[0], k);
const device T* scales = (const device T*)(w + parts_at.scales);
const device T* offsets = (const device T*)(w + parts_at.offsets);
const device T* bias = (const device T*)(w + parts_at.bias);
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup) * OUTPUTS;

uint row[OUTPUTS];
float sum[OUTPUTS];
for (int o = 0; o < OUTPUTS; o++) {
  row[o] = first + o < n ? first + o : n - 1u;
  sum[o] = 0.0f;
}
chunk_rows<T, BITS, OUTPUTS> rows;
fetch<T, BITS, G, BALANCED, OUTPUTS>(w, scales, offsets, k, lane, row, rows);

for (uint start = 0; start < k; start += STAGE) {
  const uint blocks = stage_blocks<BITS, STAGES>(k - start);
  for (uint i = 4u * index; i < blocks * BLOCK; i += 4u * THREADS) {
    float value[4];
    for (int j = 0; j < 4; j++) value[j] = 0.0f;
    if (start + i < k) load_four<float>(x + start + i, value);
    stage_four<BITS>(waiting, i, value);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  multiply_stage<T, BITS, G, BALANCED, OUTPUTS>(rows, w, scales, offsets, k, start, blocks, row, waiting, lane, sum);
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

for (int o = 0; o < OUTPUTS; o++) {
  float total = simd_sum(sum[o]);
  if (BIAS) total += float(bias[row[o]]);
#ifdef RESIDUAL
  total += residual[row[o]];
#endif
  if (lane == 0 && first + o < n) out[first + o] = total;
}
