// residual [R, D] + a [R, F] times neuron-major w [F, D]. A threadgroup makes LANES pieces of columns for ROWS rows. It
// lists the neurons that are not 0 in all of its rows, EACH_LISTED a thread at a time; then groups of LANES lanes take
// neurons from the list by turns, so that rows that are not listed are not read. Sums meet in threadgroup memory.
constexpr int EACH = piece<BITS>::each, WORDS = piece<BITS>::words;
constexpr uint STRIPE = LANES * EACH, THREADS = 32 * SIMDGROUPS, SLOTS = THREADS / LANES;
threadgroup ushort listed[THREADS * EACH_LISTED];
threadgroup uint counts[SIMDGROUPS];
threadgroup float partial[SIMDGROUPS][STRIPE + 1];

const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint rows = VECTOR ? 1u : a_shape[0], neurons = w_shape[0], columns = w_shape[1] * (BITS < 16 ? 32u / BITS : 1u);
const uint index = thread_index_in_threadgroup, slot = index / LANES;
const uint first = threadgroup_position_in_grid.x * STRIPE, first_row = threadgroup_position_in_grid.y * ROWS;
const uint wished = first + (lane % LANES) * EACH, column = wished < columns ? wished : columns - EACH;
const device uint* words = (const device uint*)w;

// Lane 0 of a simdgroup ends with columns simdgroup, simdgroup + SIMDGROUPS ...; what they are added to is read first.
constexpr int ENDED = (STRIPE + SIMDGROUPS - 1) / SIMDGROUPS;
float added_to[ROWS][ENDED];
for (int r = 0; r < ROWS; r++)
#pragma unroll
  for (int e = 0; e < ENDED; e++) {
    const uint at = simdgroup + e * SIMDGROUPS;
    const bool kept = lane == 0 && at < STRIPE && first + at < columns && first_row + r < rows;
    added_to[r][e] = kept ? float(residual[(first_row + r) * columns + first + at]) : 0.0f;
  }
float sum[ROWS][EACH], shift[ROWS];
for (int r = 0; r < ROWS; r++) {
  shift[r] = 0.0f;
  for (int i = 0; i < EACH; i++) sum[r][i] = 0.0f;
}

for (uint window = 0; window < neurons; window += THREADS * EACH_LISTED) {
  uint active = 0u, count = 0u;
#pragma unroll
  for (int j = 0; j < EACH_LISTED; j++) {
    uint neuron = window + j * THREADS + index;
    const uint at = neuron < neurons ? neuron : neurons - 1u;
    // Without branches, so that all of these reads are on their way together.
    bool any = false;
    for (int r = 0; r < ROWS; r++)
      any = any | (float(a[(first_row + r < rows ? first_row + r : rows - 1u) * neurons + at]) != 0.0f);
    any = any & (neuron < neurons);
    if (any) {
      active |= 1u << j;
      count++;
    }
  }
  const uint before = count_up_to(count, lane);
  if (lane == 31u) counts[simdgroup] = before;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint others = lane < SIMDGROUPS ? counts[lane] : 0u;
  const uint total = simd_sum(others);
  uint place = simd_sum(lane < simdgroup ? others : 0u) + before - count;
#pragma unroll
  for (int j = 0; j < EACH_LISTED; j++)
    if ((active >> j) & 1u) listed[place++] = ushort(j * THREADS + index);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (uint i = slot; i < total; i += SLOTS * LOADS) {
    word_run<WORDS> run[LOADS];
    float value[LOADS][ROWS];
    row_terms terms[LOADS];
#pragma unroll
    for (int u = 0; u < LOADS; u++) {
      // Past the end, the last neuron is read again and counts as 0.
      const uint at = i + u * SLOTS;
      const uint neuron = window + listed[at < total ? at : total - 1u];
      load_words(words + (neuron * (columns / EACH) + column / EACH) * WORDS, run[u]);
      if (BITS < 16) terms[u] = read_terms<BITS, G, BALANCED>(scales, offsets, neuron, columns, column);
#pragma unroll
      for (int r = 0; r < ROWS; r++)
        value[u][r] = at < total && first_row + r < rows ? float(a[(first_row + r) * neurons + neuron]) : 0.0f;
    }
#pragma unroll
    for (int u = 0; u < LOADS; u++) {
      float level[EACH];
      unpack_piece<T, BITS>(run[u], level);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const float gain = BITS < 16 ? value[u][r] * terms[u].gain : value[u][r];
        if (BITS < 16) shift[r] += value[u][r] * terms[u].shift;
#pragma unroll
        for (int c = 0; c < EACH; c++) sum[r][c] += gain * level[c];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

#pragma unroll
for (int r = 0; r < ROWS; r++) {
#pragma unroll
  for (int c = 0; c < EACH; c++) {
    float total = sum[r][c] + shift[r];
    for (uint step = LANES; step < 32u; step <<= 1) total += simd_shuffle_xor(total, ushort(step));
    if (lane < LANES) partial[simdgroup][lane * EACH + c] = total;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
  for (int e = 0; e < ENDED; e++) {
    const uint at = simdgroup + e * SIMDGROUPS;
    const float total = simd_sum(lane < SIMDGROUPS && at < STRIPE ? partial[lane][at] : 0.0f);
    if (lane == 0 && at < STRIPE && first + at < columns && first_row + r < rows)
      out[(first_row + r) * columns + first + at] = X(added_to[r][e] + total);
  }
  if (r < ROWS - 1) threadgroup_barrier(mem_flags::mem_threadgroup);
}
