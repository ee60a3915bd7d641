// y = W (h / rms(h) * gain) + bias, or with ACT an activated gate times its partner, W's first half of rows being gates.
// A simdgroup makes OUTPUTS results; its lanes share K. The root mean square leaves the sum, so that nothing waits for it.
// With POST_NORM, h is first h + y / rms(y) * post, and comes out as h_out.
constexpr uint BLOCK = packing<BITS>::BLOCK, STAGE = STAGES * BLOCK, THREADS = 32 * SIMDGROUPS;
constexpr int COUNT = ACT ? 2 * OUTPUTS : OUTPUTS;
threadgroup float4 staged[STAGES * 8 * packing<BITS>::PITCH];
threadgroup float gathered[SIMDGROUPS];
TG(float) waiting = (TG(float))staged;
const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint index = thread_index_in_threadgroup, k = h_shape[0], n = sheet_shape[0] / (ACT ? 2 : 1);
const device uint* w = (const device uint*)sheet;
const sheet_parts parts_at = sheet_of<T, BITS, G, BALANCED, BIAS>(sheet_shape[0], k);
const device T* scales = (const device T*)(w + parts_at.scales);
const device T* offsets = (const device T*)(w + parts_at.offsets);
const device T* bias = (const device T*)(w + parts_at.bias);
#ifdef POST_NORM
const device T* post = (const device T*)(w + parts_at.gain);
const device T* gain = (const device T*)(w + parts_at.second_gain);
#else
const device T* gain = (const device T*)(w + parts_at.gain);
#endif
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup) * OUTPUTS;
const float eps = as_type<float>(int(EPS));

uint row[COUNT];
float sum[COUNT];
for (int o = 0; o < COUNT; o++) {
  const uint output = first + uint(o % OUTPUTS);
  row[o] = (output < n ? output : n - 1u) + (o < OUTPUTS ? 0u : n);
  sum[o] = 0.0f;
}
chunk_rows<T, BITS, COUNT> rows;
fetch<T, BITS, G, BALANCED, COUNT>(w, scales, offsets, k, lane, row, rows);

#ifdef POST_NORM
float post_squares = 0.0f, post_scale = 0.0f;
for (uint i = index; i < k; i += THREADS) post_squares += y[i] * y[i];
post_squares = simd_sum(post_squares);
if (lane == 0) gathered[simdgroup] = post_squares;
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int s = 0; s < SIMDGROUPS; s++) post_scale += gathered[s];
post_scale = metal::rsqrt(post_scale / float(k) + eps);
#endif

float squares = 0.0f;
for (uint start = 0; start < k; start += STAGE) {
  const uint blocks = stage_blocks<BITS, STAGES>(k - start);
  for (uint i = 4u * index; i < blocks * BLOCK; i += 4u * THREADS) {
    const uint at = start + i;
    float x[4];
    for (int j = 0; j < 4; j++) x[j] = 0.0f;
    if (at < k) {
      load_four<float>(h + at, x);
#ifdef POST_NORM
      float added[4], factor[4];
      load_four<float>(y + at, added);
      load_four<T>(post + at, factor);
      for (int j = 0; j < 4; j++) {
        x[j] += added[j] * post_scale * factor[j];
        if (threadgroup_position_in_grid.x == 0u) h_out[at + uint(j)] = x[j];
      }
#endif
      squares += gain_four<T>(gain + at, x);
    }
    stage_four<BITS>(waiting, i, x);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  multiply_stage<T, BITS, G, BALANCED, COUNT>(rows, w, scales, offsets, k, start, blocks, row, waiting, lane, sum);
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

squares = simd_sum(squares);
if (lane == 0) gathered[simdgroup] = squares;
threadgroup_barrier(mem_flags::mem_threadgroup);
squares = 0.0f;
for (int s = 0; s < SIMDGROUPS; s++) squares += gathered[s];
const float scale = metal::rsqrt(squares / float(k) + eps);
for (int o = 0; o < COUNT; o++) {
  sum[o] = simd_sum(sum[o]) * scale;
  if (BIAS) sum[o] += float(bias[row[o]]);
}
for (int o = 0; o < OUTPUTS; o++)
  if (lane == 0 && first + o < n) out[first + o] = ACT ? activated<ACT>(sum[o]) * sum[COUNT - OUTPUTS + o] : sum[o];
