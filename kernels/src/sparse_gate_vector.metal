// act(gate) up of an FFN for one row of x, which is normed: as sparse_gate_up, with x in threadgroup memory like
// norm_matvec's, which pays for one row as its weights are few. Up rows are read one by one, where they are wanted.
constexpr uint BLOCK = packing<BITS>::BLOCK, STAGE = STAGES * BLOCK, THREADS = 32 * SIMDGROUPS;
threadgroup float4 staged[STAGES * 8 * packing<BITS>::PITCH];
threadgroup float gathered[SIMDGROUPS];
threadgroup uint wishes[SIMDGROUPS];
TG(float) waiting = (TG(float))staged;
const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint index = thread_index_in_threadgroup, k = x_shape[0], neurons = w_shape[0] / 2u;
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup) * OUTPUTS;
const device uint* words = (const device uint*)w;

uint row[OUTPUTS];
float gate[OUTPUTS], up[OUTPUTS];
for (int o = 0; o < OUTPUTS; o++) {
  row[o] = first + o < neurons ? first + o : neurons - 1u;
  gate[o] = 0.0f;
  up[o] = 0.0f;
}
chunk_rows<BITS, OUTPUTS> rows;
fetch<T, BITS, G, BALANCED, OUTPUTS>(words, scales, offsets, k, lane, row, rows);

float squares = 0.0f;
for (uint start = 0; start < k; start += STAGE) {
  const uint blocks = stage_blocks<BITS, STAGES>(k - start);
  squares += stage_gained<T, BITS>(x, gain, k, start, blocks, index, THREADS, waiting);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  multiply_stage<T, BITS, G, BALANCED, OUTPUTS>(rows, words, scales, offsets, k, start, blocks, row, waiting, lane, gate);
  if (start + STAGE < k) threadgroup_barrier(mem_flags::mem_threadgroup);
}
squares = simd_sum(squares);
if (lane == 0) gathered[simdgroup] = squares;
threadgroup_barrier(mem_flags::mem_threadgroup);
squares = 0.0f;
for (int s = 0; s < SIMDGROUPS; s++) squares += gathered[s];
const float root = metal::rsqrt(squares / float(k) + settings[0]), threshold = settings[1];

uint wanted = 0u;
for (int o = 0; o < OUTPUTS; o++) {
  const float raw = root * simd_sum(gate[o]);
  // What is not a number stays, and passes.
  const float value = raw != raw ? raw : activated<ACT>(raw);
  gate[o] = value;
  if (!((value < 0.0f ? -value : value) <= threshold) && first + o < neurons) wanted |= 1u << o;
}
if (lane == 0) wishes[simdgroup] = wanted;
threadgroup_barrier(mem_flags::mem_threadgroup);
uint any = 0u;
for (int s = 0; s < SIMDGROUPS; s++) any |= wishes[s];

// Stages are gone through together, for x is staged anew in each; a single one is still there.
if (any != 0u) {
  chunk_rows<BITS, 1> held[OUTPUTS];
  for (int o = 0; o < OUTPUTS; o++) {
    row[o] += neurons;
    if ((wanted >> o) & 1u) fetch<T, BITS, G, BALANCED, 1>(words, scales, offsets, k, lane, row + o, held[o]);
  }
  for (uint start = 0; start < k; start += STAGE) {
    const uint blocks = stage_blocks<BITS, STAGES>(k - start);
    if (k > STAGE) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      stage_gained<T, BITS>(x, gain, k, start, blocks, index, THREADS, waiting);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (int o = 0; o < OUTPUTS; o++)
      if ((wanted >> o) & 1u)
        multiply_stage<T, BITS, G, BALANCED, 1>(held[o], words, scales, offsets, k, start, blocks, row + o, waiting, lane,
                                                up + o);
  }
}
for (int o = 0; o < OUTPUTS; o++) {
  const float value = (wanted >> o) & 1u ? gate[o] * root * simd_sum(up[o]) : 0.0f;
  if (lane == 0 && first + o < neurons) out[first + o] = value;
}
