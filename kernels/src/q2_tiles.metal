// x [R, K] times balanced 2-bit w [N, K], by matrix tiles: 16 outputs a threadgroup, R at most ROWS.
// Its SIMDGROUPS share K; each stages the input that it needs next, and their sums meet in threadgroup memory.
// G: weights a scale, 0 for one scale an output. A lane reads RUN words at once, such that one scale covers the 4 RUN
// words of its tile (G = 32 takes the tile in two parts), and has LOADS such reads of both its outputs in flight.
constexpr int TILES = (ROWS + 7) / 8;
constexpr int PARTS = G == 32 ? 2 : 1;
constexpr uint SPAN = 4 * RUN * LOADS;
threadgroup tile_unit<T> staged[SIMDGROUPS][ROWS][SPAN];
threadgroup float partial[SIMDGROUPS][TILES * 128];

const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint n = w_shape[0], words = w_shape[1], k = words * 16u, rows = x_shape[0];
const uint first = threadgroup_position_in_grid.x * 16u, output = first + tile_output(lane);
const uint low_output = output < n ? output : n - 1u, high_output = output + 8u < n ? output + 8u : n - 1u;
const device uint* low_words = w + low_output * words + RUN * tile_word(lane);
const device uint* high_words = w + high_output * words + RUN * tile_word(lane);
const uint groups = G == 0 ? 1u : k / uint(G == 0 ? 1 : G);
const uint steps = words / (4u * RUN);

float sum[TILES][4];
for (int t = 0; t < TILES; t++)
  for (int i = 0; i < 4; i++) sum[t][i] = 0.0f;

for (uint begin = simdgroup * LOADS; begin < steps; begin += SIMDGROUPS * LOADS) {
  // The last round may begin earlier than its work, to end with the rows; that input counts as 0.
  const uint start = begin + LOADS > steps ? steps - LOADS : begin;
  word_run<RUN> low[LOADS], high[LOADS];
  float low_scale[LOADS][PARTS], high_scale[LOADS][PARTS];
  const device uint* low_from = low_words + start * 4u * RUN;
  const device uint* high_from = high_words + start * 4u * RUN;
  const auto low_scales = scales + (low_output * groups + start * PARTS);
  const auto high_scales = scales + (high_output * groups + start * PARTS);
#pragma unroll
  for (int u = 0; u < LOADS; u++) {
    load_words(low_from + 4 * RUN * u, low[u]);
    load_words(high_from + 4 * RUN * u, high[u]);
    if (G != 0) {
#pragma unroll
      for (int p = 0; p < PARTS; p++) {
        low_scale[u][p] = float(low_scales[PARTS * u + p]);
        high_scale[u][p] = float(high_scales[PARTS * u + p]);
      }
    }
  }
#pragma unroll 2
  for (uint i = 0; i < ROWS * SPAN; i += 32u) {
    uint row = (i + lane) / SPAN, word = (i + lane) % SPAN, at = start * 4u * RUN + word;
    if (row < rows && at >= begin * 4u * RUN) tile_stage(&staged[simdgroup][row][word], x + row * k + at * 16u, row);
    else if (row < ROWS) tile_clear(&staged[simdgroup][row][word]);
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
  for (int u = 0; u < LOADS; u++) {
    float product[PARTS][TILES][4];
#pragma unroll
    for (int p = 0; p < PARTS; p++)
      for (int t = 0; t < TILES; t++)
        for (int i = 0; i < 4; i++) product[p][t][i] = G == 0 ? sum[t][i] : 0.0f;
#pragma unroll
    for (int v = 0; v < RUN; v++) {
      tile_x<T> tile[TILES];
#pragma unroll
      for (int t = 0; t < TILES; t++)
        tile_read(tile[t], &staged[simdgroup][8 * t][4 * RUN * u + v], RUN, SPAN, ROWS - 8 * t, lane);
      q2_tiles_multiply<T, PARTS, TILES>(&product[0][0][0], tile, low[u].word[v], high[u].word[v], lane);
    }
#pragma unroll
    for (int t = 0; t < TILES; t++)
      for (int i = 0; i < 4; i++) {
        if (G == 0) {
          sum[t][i] = product[0][t][i];
        } else {
          for (int p = 0; p < PARTS; p++)
            sum[t][i] += (i < 2 ? low_scale[u][p] : high_scale[u][p]) * product[p][t][i];
        }
      }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
}

for (int t = 0; t < TILES; t++)
  for (int i = 0; i < 4; i++) partial[simdgroup][t * 128 + lane * 4u + i] = sum[t][i];
threadgroup_barrier(mem_flags::mem_threadgroup);

for (uint cell = thread_index_in_threadgroup; cell < TILES * 128u; cell += SIMDGROUPS * 32u) {
  float total = 0.0f;
  for (int s = 0; s < SIMDGROUPS; s++) total += partial[s][cell];
  uint holder = (cell & 127u) >> 2;
  uint to = first + tile_output(holder) + ((cell & 2u) << 2), row = (cell >> 7) * 8u + tile_row(holder) + (cell & 1u);
  if (to < n && row < rows) {
    if (G == 0) total *= float(scales[to]);
    out[row * n + to] = T(total);
  }
}
