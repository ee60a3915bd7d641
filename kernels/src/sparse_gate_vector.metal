// act(gate) up of an FFN for one row of x, which is normed: as sparse_gate_up, for few bytes beside the weights' own. A
// threadgroup takes neighbouring neurons, MOST at most. WIDE simdgroups take a row together and hold the part of x under
// their chunks of it in registers, HELD chunks a lane; rows stream by, those of AHEAD turns on their way. Then the up rows
// that are wanted are read in the same way.
constexpr uint CHUNK = packing<BITS>::CHUNK, TEAMS = SIMDGROUPS / WIDE, THREADS = 32 * SIMDGROUPS;
constexpr int ROUNDS = (MOST + 31) / 32;
threadgroup float pieces[MOST][WIDE];
threadgroup float up_pieces[MOST][WIDE];
threadgroup float gathered[SIMDGROUPS];
threadgroup ushort listed[SIMDGROUPS][MOST];
const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint index = thread_index_in_threadgroup, team = simdgroup / WIDE, place = simdgroup % WIDE;
const uint k = x_shape[0], neurons = w_shape[0] / 2u;
const uint group = threadgroup_position_in_grid.x, groups = threadgroups_per_grid.x;
const uint begin = neurons * group / groups, count = neurons * (group + 1u) / groups - begin;
const device uint* words = (const device uint*)w;

chunk_rows<T, BITS, 1> coming[AHEAD][HELD];
#pragma unroll
for (int a = 0; a < AHEAD; a++) {
  const uint mine = team + a * TEAMS, row = begin + (mine < count ? mine : count - 1u);
#pragma unroll
  for (int h = 0; h < HELD; h++)
    fetch<T, BITS, G, BALANCED, 1>(words, scales, offsets, k, (h * WIDE + place) * 32u + lane, &row, coming[a][h]);
}
const float eps = settings[0], threshold = settings[1];
// Left to itself CUDA's compiler puts off what only later rows need.
simdgroup_barrier(mem_flags::mem_none);
float held[HELD][CHUNK], total[HELD], squares = 0.0f;
#pragma unroll
for (int h = 0; h < HELD; h++) {
  const uint at = ((h * WIDE + place) * 32u + lane) * CHUNK;
  if (at < k) {
    float factor[CHUNK];
    load_values<float, CHUNK>(x + at, held[h]);
    load_values<T, CHUNK>(gain + at, factor);
#pragma unroll
    for (uint i = 0; i < CHUNK; i++) {
      squares += held[h][i] * held[h][i];
      held[h][i] *= factor[i];
    }
  } else {
#pragma unroll
    for (uint i = 0; i < CHUNK; i++) held[h][i] = 0.0f;
  }
  total[h] = chunk_total<BITS>(held[h]);
}
squares = simd_sum(squares);
if (lane == 0) gathered[simdgroup] = squares;

for (uint turn = team; turn < count; turn += TEAMS * AHEAD) {
  float sum[AHEAD];
#pragma unroll
  for (int a = 0; a < AHEAD; a++) {
    sum[a] = 0.0f;
#pragma unroll
    for (int h = 0; h < HELD; h++)
      multiply_by<T, BITS, BALANCED, 1>(coming[a][h], held[h], total[h], sum + a);
    // Past the end all lanes read one place: without a branch, for a choice between two would be a copy.
    const uint next = turn + (a + AHEAD) * TEAMS, row = begin + (next < count ? next : 0u);
#pragma unroll
    for (int h = 0; h < HELD; h++)
      fetch<T, BITS, G, BALANCED, 1>(words, scales, offsets, k,
                                     next < count ? (h * WIDE + place) * 32u + lane : 0u, &row, coming[a][h]);
    simdgroup_barrier(mem_flags::mem_none);
  }
#pragma unroll
  for (int a = 0; a < AHEAD; a++) {
    sum[a] = simd_sum(sum[a]);
    if (lane == 0 && turn + a * TEAMS < count) pieces[turn + a * TEAMS][place] = sum[a];
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);

// Each simdgroup lists for itself which neurons are active, a lane for a neuron: there is no second wait for one that does.
squares = 0.0f;
for (int s = 0; s < WIDE; s++) squares += gathered[s];
const float root = metal::rsqrt(squares / float(k) + eps);
float gate[ROUNDS];
uint wanted = 0u;
#pragma unroll
for (int r = 0; r < ROUNDS; r++) {
  const uint neuron = 32u * r + lane;
  float raw = 0.0f;
  for (int s = 0; s < WIDE; s++) raw += pieces[neuron < count ? neuron : count - 1u][s];
  raw *= root;
  // What is not a number stays, and passes.
  const float value = raw != raw ? raw : activated<ACT>(raw);
  const bool active = !((value < 0.0f ? -value : value) <= threshold) && neuron < count;
  const uint before = count_up_to(active ? 1u : 0u, lane);
  if (active) listed[simdgroup][wanted + before - 1u] = ushort(neuron);
  gate[r] = active ? value * root : 0.0f;
  wanted += simd_shuffle(before, ushort(31));
}
simdgroup_barrier(mem_flags::mem_threadgroup);

for (uint turn = team; turn < wanted; turn += TEAMS * AHEAD) {
#pragma unroll
  for (int a = 0; a < AHEAD; a++) {
    // Past the end the last row is read again.
    const uint mine = turn + a * TEAMS, row = neurons + begin + listed[simdgroup][mine < wanted ? mine : wanted - 1u];
#pragma unroll
    for (int h = 0; h < HELD; h++)
      fetch<T, BITS, G, BALANCED, 1>(words, scales, offsets, k, (h * WIDE + place) * 32u + lane, &row, coming[a][h]);
  }
#pragma unroll
  for (int a = 0; a < AHEAD; a++) {
    float sum = 0.0f;
#pragma unroll
    for (int h = 0; h < HELD; h++) multiply_by<T, BITS, BALANCED, 1>(coming[a][h], held[h], total[h], &sum);
    sum = simd_sum(sum);
    const uint mine = turn + a * TEAMS;
    if (lane == 0 && mine < wanted) up_pieces[listed[simdgroup][mine]][place] = sum;
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
// Every simdgroup knows the gates.
#pragma unroll
for (int r = 0; r < ROUNDS; r++) {
  const uint neuron = 32u * r + lane;
  if (simdgroup == r && neuron < count) {
    float up = 0.0f;
    if (gate[r] != 0.0f)
      for (int s = 0; s < WIDE; s++) up += up_pieces[neuron][s];
    out[begin + neuron] = gate[r] != 0.0f ? gate[r] * up : 0.0f;
  }
}
