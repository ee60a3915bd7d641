// act(gate) up of an FFN for one row of x, which is normed: as sparse_gate_up, with x in threadgroup memory like
// norm_matvec's, which pays for one row as its weights are few. Up rows are read where they are wanted, by all
// simdgroups together: one alone would take a block after the other, and the others wait.
constexpr uint EACH = SIMDGROUPS * OUTPUTS;
constexpr uint BLOCK = packing<BITS>::BLOCK, CHUNK = packing<BITS>::CHUNK;
constexpr uint STAGE = STAGES * BLOCK, THREADS = 32 * SIMDGROUPS;
threadgroup float4 staged[STAGES * 8 * packing<BITS>::PITCH];
threadgroup float gathered[SIMDGROUPS];
threadgroup uint wishes[EACH];
threadgroup ushort listed[EACH];
threadgroup float pieces[EACH][STAGES];
TG(float) waiting = (TG(float))staged;
const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint index = thread_index_in_threadgroup, k = x_shape[0], neurons = w_shape[0] / 2u;
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup) * OUTPUTS;
const device uint* words = (const device uint*)w;

uint row[OUTPUTS];
float gate[OUTPUTS];
for (int o = 0; o < OUTPUTS; o++) {
  row[o] = first + o < neurons ? first + o : neurons - 1u;
  gate[o] = 0.0f;
}
chunk_rows<T, BITS, OUTPUTS> rows;
fetch<T, BITS, G, BALANCED, OUTPUTS>(words, scales, offsets, k, lane, row, rows);

float squares = 0.0f;
for (uint start = 0; start < k; start += STAGE) {
  const uint blocks = stage_blocks<BITS, STAGES>(k - start);
  squares += stage_gained<T, BITS>(x, gain, k, start, blocks, index, THREADS, waiting);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  multiply_stage<T, BITS, G, BALANCED, OUTPUTS>(rows, words, scales, offsets, k, start, blocks, row, waiting, lane,
                                                gate);
  if (start + STAGE < k) threadgroup_barrier(mem_flags::mem_threadgroup);
}
squares = simd_sum(squares);
if (lane == 0) gathered[simdgroup] = squares;
threadgroup_barrier(mem_flags::mem_threadgroup);
squares = 0.0f;
for (int s = 0; s < SIMDGROUPS; s++) squares += gathered[s];
const float root = metal::rsqrt(squares / float(k) + settings[0]), threshold = settings[1];

bool active[OUTPUTS];
for (int o = 0; o < OUTPUTS; o++) {
  const float raw = root * simd_sum(gate[o]);
  // What is not a number stays, and passes.
  const float value = raw != raw ? raw : activated<ACT>(raw);
  gate[o] = value;
  active[o] = !((value < 0.0f ? -value : value) <= threshold) && first + o < neurons;
  if (lane == 0) wishes[simdgroup * OUTPUTS + o] = active[o] ? 1u : 0u;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
uint wanted = 0u, place = 0u;
for (uint i = 0; i < EACH; i++) {
  if (i == index) place = wanted;
  wanted += wishes[i];
}
if (index < EACH && wishes[index] != 0u) listed[place] = ushort(index);
for (uint i = index; i < EACH * STAGES; i += THREADS) (&pieces[0][0])[i] = 0.0f;
threadgroup_barrier(mem_flags::mem_threadgroup);

// Stages are gone through together, for x is staged anew in each; a single one is still there.
for (uint start = 0; start < k && wanted != 0u; start += STAGE) {
  const uint blocks = stage_blocks<BITS, STAGES>(k - start), pairs = wanted * blocks;
  if (k > STAGE) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    stage_gained<T, BITS>(x, gain, k, start, blocks, index, THREADS, waiting);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  // Pairs of a row and a block of it, by turns; the weights of AHEAD pairs are on their way.
  for (uint pair = simdgroup; pair < pairs; pair += SIMDGROUPS * AHEAD) {
    chunk_rows<T, BITS, 1> up[AHEAD];
    uint from[AHEAD];
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
      const uint p = pair + a * SIMDGROUPS < pairs ? pair + a * SIMDGROUPS : pairs - 1u;
      from[a] = listed[p / blocks];
      const uint up_row = neurons + threadgroup_position_in_grid.x * EACH + from[a];
      const uint at = start / CHUNK + p % blocks * 32u + lane;
      fetch<T, BITS, G, BALANCED, 1>(words, scales, offsets, k, at, &up_row, up[a]);
    }
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
      const uint p = pair + a * SIMDGROUPS;
      if (p < pairs) {
        float sum = 0.0f;
        multiply<T, BITS, BALANCED, 1>(up[a], waiting + (p % blocks * 32u + lane) * packing<BITS>::PITCH, &sum);
        sum = simd_sum(sum);
        if (lane == 0) pieces[from[a]][p % blocks] += sum;
      }
    }
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int o = 0; o < OUTPUTS; o++) {
  float up = 0.0f;
  for (int b = 0; b < STAGES; b++) up += pieces[simdgroup * OUTPUTS + o][b];
  if (lane == 0 && first + o < neurons) out[first + o] = active[o] ? gate[o] * root * up : 0.0f;
}
