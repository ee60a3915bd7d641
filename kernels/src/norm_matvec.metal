// y = W (h / rms(h) * gain) + bias, or with ACT an activated gate times its partner, W's first half of rows being gates.
// A simdgroup makes OUTPUTS results; its lanes share K. The root mean square leaves the sum, so that nothing waits for it.
// With POST_NORM, h is first h + y / rms(y) * post, and comes out as h_out.
constexpr int CHUNK = packing<BITS>::CHUNK;
constexpr int COUNT = ACT ? 2 * OUTPUTS : OUTPUTS;
const uint lane = thread_index_in_simdgroup, k = h_shape[0], n = w_shape[0] / (ACT ? 2 : 1);
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * OUTPUTS;
const float eps = as_type<float>(int(EPS));

#ifdef POST_NORM
float post_scale = 0.0f;
for (uint i = lane; i < k; i += 32u) post_scale += y[i] * y[i];
post_scale = metal::rsqrt(simd_sum(post_scale) / float(k) + eps);
#endif

uint row[COUNT];
float sum[COUNT];
for (int o = 0; o < COUNT; o++) {
  const uint output = first + uint(o % OUTPUTS);
  row[o] = (output < n ? output : n - 1u) + (o < OUTPUTS ? 0u : n);
  sum[o] = 0.0f;
}

float squares = 0.0f;
for (uint at = lane; at < k / uint(CHUNK); at += 32u) {
  float x[CHUNK], factor[CHUNK];
  load_values<float, CHUNK>(h + at * CHUNK, x);
#ifdef POST_NORM
  float added[CHUNK];
  load_values<float, CHUNK>(y + at * CHUNK, added);
  load_values<T, CHUNK>(post + at * CHUNK, factor);
#pragma unroll
  for (int i = 0; i < CHUNK; i++) {
    x[i] += added[i] * post_scale * factor[i];
    if (first == 0u) h_out[at * CHUNK + i] = x[i];
  }
#endif
  load_values<T, CHUNK>(gain + at * CHUNK, factor);
#pragma unroll
  for (int i = 0; i < CHUNK; i++) {
    squares += x[i] * x[i];
    x[i] *= factor[i];
  }
  add_products<T, BITS, G, BALANCED, COUNT>((const device uint*)w, scales, offsets, k, at, row, x, sum);
}

const float scale = metal::rsqrt(simd_sum(squares) / float(k) + eps);
for (int o = 0; o < COUNT; o++) {
  sum[o] = simd_sum(sum[o]) * scale;
  if (BIAS) sum[o] += float(bias[row[o]]);
}
for (int o = 0; o < OUTPUTS; o++)
  if (lane == 0 && first + o < n) out[first + o] = ACT ? activated<ACT>(sum[o]) * sum[COUNT - OUTPUTS + o] : sum[o];
