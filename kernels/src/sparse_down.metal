// residual [R, D] + a [R, F] times neuron-major w [F, D]. A threadgroup makes LANES pieces of columns for ROWS rows. Each
// simdgroup has EACH_LISTED parts of a, of which a lane takes NEIGHBOURS numbers, and lists the neurons that are not 0 in
// all of the rows. It waits for no other: groups of LANES lanes take neurons from its list by turns, so that rows that are
// not listed are not read. Sums meet in threadgroup memory.
constexpr int EACH = piece<BITS>::each, WORDS = piece<BITS>::words;
constexpr uint STRIPE = LANES * EACH, SLOTS = 32 / LANES, PART = 32 * NEIGHBOURS;
constexpr uint WINDOW = SIMDGROUPS * PART * EACH_LISTED;
threadgroup ushort listed[SIMDGROUPS][PART * EACH_LISTED];
threadgroup float partial[SIMDGROUPS][STRIPE + 1];

const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint rows = VECTOR ? 1u : a_shape[0], neurons = w_shape[0], columns = w_shape[1] * (BITS < 16 ? 32u / BITS : 1u);
const uint index = thread_index_in_threadgroup, slot = lane / LANES;
const uint first = threadgroup_position_in_grid.x * STRIPE, first_row = threadgroup_position_in_grid.y * ROWS;
const uint wished = first + (lane % LANES) * EACH, column = wished < columns ? wished : columns - EACH;
const device uint* words = (const device uint*)w;

// Thread i ends with column i of the stripe; what it is added to is read first.
const uint end = first + index;
float added_to[ROWS];
for (int r = 0; r < ROWS; r++) {
  const bool kept = index < STRIPE && end < columns && first_row + r < rows;
  added_to[r] = kept ? float(residual[(first_row + r) * columns + end]) : 0.0f;
}
float sum[ROWS][EACH], shift[ROWS];
for (int r = 0; r < ROWS; r++) {
  shift[r] = 0.0f;
  for (int i = 0; i < EACH; i++) sum[r][i] = 0.0f;
}

for (uint window = 0; window < neurons; window += WINDOW) {
  uint active[EACH_LISTED], count = 0u;
  for (int j = 0; j < EACH_LISTED; j++) active[j] = 0u;
  for (int r = 0; r < ROWS; r++) {
    float value[EACH_LISTED][NEIGHBOURS];
#pragma unroll
    for (int j = 0; j < EACH_LISTED; j++) {
      const uint neuron = window + (j * SIMDGROUPS + simdgroup) * PART + lane * NEIGHBOURS;
      const uint at = neuron < neurons ? neuron : neurons - NEIGHBOURS;
      consecutive<X, NEIGHBOURS>::load(a + (first_row + r < rows ? first_row + r : rows - 1u) * neurons + at, value[j]);
    }
    // Left to itself CUDA's compiler waits for one read before it asks for the next.
    simdgroup_barrier(mem_flags::mem_none);
#pragma unroll
    for (int j = 0; j < EACH_LISTED; j++)
#pragma unroll
      for (int c = 0; c < NEIGHBOURS; c++)
        // NEIGHBOURS divides the neurons.
        if (value[j][c] != 0.0f && window + (j * SIMDGROUPS + simdgroup) * PART + lane * NEIGHBOURS < neurons)
          active[j] |= 1u << c;
  }
#pragma unroll
  for (int j = 0; j < EACH_LISTED; j++)
#pragma unroll
    for (int c = 0; c < NEIGHBOURS; c++) count += (active[j] >> c) & 1u;
  const uint before = count_up_to(count, lane), total = simd_shuffle(before, ushort(31));
  uint place = before - count;
#pragma unroll
  for (int j = 0; j < EACH_LISTED; j++)
#pragma unroll
    for (int c = 0; c < NEIGHBOURS; c++)
      if ((active[j] >> c) & 1u)
        listed[simdgroup][place++] = ushort((j * SIMDGROUPS + simdgroup) * PART + lane * NEIGHBOURS + c);
  simdgroup_barrier(mem_flags::mem_threadgroup);

  for (uint i = 0u; i < total; i += SLOTS * LOADS) {
    word_run<WORDS> run[LOADS];
    float value[LOADS][ROWS];
    row_scales<T> read[LOADS];
#pragma unroll
    for (int u = 0; u < LOADS; u++) {
      // Past the end, the last neuron is read again and counts as 0.
      const uint at = i + slot + u * SLOTS;
      const uint neuron = window + listed[simdgroup][at < total ? at : total - 1u];
      load_words(words + (neuron * (columns / EACH) + column / EACH) * WORDS, run[u]);
      if (BITS < 16) read_scales<G, BALANCED>(scales, offsets, neuron, columns, column, read[u]);
#pragma unroll
      for (int r = 0; r < ROWS; r++)
        value[u][r] = at < total && first_row + r < rows ? float(a[(first_row + r) * neurons + neuron]) : 0.0f;
    }
    simdgroup_barrier(mem_flags::mem_none);
#pragma unroll
    for (int u = 0; u < LOADS; u++) {
      float level[EACH];
      unpack_piece<T, BITS>(run[u], level);
      row_terms terms;
      if (BITS < 16) terms = terms_of<BITS, BALANCED>(read[u]);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const float gain = BITS < 16 ? value[u][r] * terms.gain : value[u][r];
        if (BITS < 16) shift[r] += value[u][r] * terms.shift;
#pragma unroll
        for (int c = 0; c < EACH; c++) sum[r][c] += gain * level[c];
      }
    }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
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
  if (index < STRIPE && end < columns && first_row + r < rows) {
    float total = 0.0f;
    for (int s = 0; s < SIMDGROUPS; s++) total += partial[s][index];
    out[(first_row + r) * columns + end] = X(added_to[r] + total);
  }
  if (r < ROWS - 1) threadgroup_barrier(mem_flags::mem_threadgroup);
}
