// act(gate) up of an FFN for R rows of x, at most ROWS: each simdgroup makes OUTPUTS neurons. It multiplies their gate
// rows first, and reads an up row only where the activation of some row of x passes the threshold. Gate rows are the
// first half of w, up rows the second. `settings`: epsilon of the norm, threshold.
const uint lane = thread_index_in_simdgroup;
const uint rows = x_shape[0], k = w_shape[1] * (BITS < 16 ? 32u / BITS : 1u), neurons = w_shape[0] / 2u;
const uint first = (threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * OUTPUTS;
const device uint* words = (const device uint*)w;
const float threshold = settings[1];

float gate[OUTPUTS * ROWS], squares[ROWS];
uint row[OUTPUTS];
for (int i = 0; i < OUTPUTS * ROWS; i++) gate[i] = 0.0f;
for (int r = 0; r < ROWS; r++) squares[r] = 0.0f;
for (int o = 0; o < OUTPUTS; o++) row[o] = first + o < neurons ? first + o : neurons - 1u;
multiply_rows<BITS, G, BALANCED, OUTPUTS, ROWS, NORM, LOADS>(x, gain, words, scales, offsets, row, ~0u, k, rows, lane,
                                                             gate, squares);

float root[ROWS];
uint wanted = 0u;
for (int r = 0; r < ROWS; r++) root[r] = NORM ? metal::rsqrt(simd_sum(squares[r]) / float(k) + settings[0]) : 1.0f;
#pragma unroll
for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const float raw = root[r] * simd_sum(gate[o * ROWS + r]);
    // What is not a number stays, and passes.
    const float value = raw != raw ? raw : activated<ACT>(raw);
    const bool active = !((value < 0.0f ? -value : value) <= threshold);
    gate[o * ROWS + r] = active ? value : 0.0f;
    if (active && first + o < neurons) wanted |= 1u << o;
  }

float up[OUTPUTS * ROWS];
for (int i = 0; i < OUTPUTS * ROWS; i++) up[i] = 0.0f;
for (int o = 0; o < OUTPUTS; o++) row[o] += neurons;
if (wanted) {
  float unused[ROWS];
  for (int r = 0; r < ROWS; r++) unused[r] = 0.0f;
  multiply_rows<BITS, G, BALANCED, OUTPUTS, ROWS, NORM, LOADS>(x, gain, words, scales, offsets, row, wanted, k, rows,
                                                               lane, up, unused);
#pragma unroll
  for (int i = 0; i < OUTPUTS * ROWS; i++) up[i] = root[i % ROWS] * simd_sum(up[i]);
}
if (lane == 0) {
  for (int o = 0; o < OUTPUTS; o++)
    for (int r = 0; r < ROWS; r++)
      if (first + o < neurons && uint(r) < rows)
        out[r * neurons + first + o] = X(((wanted >> o) & 1u) ? gate[o * ROWS + r] * up[o * ROWS + r] : 0.0f);
}
