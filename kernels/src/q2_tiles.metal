// x [R, K] times balanced 2-bit w [N, K], by matrix tiles of 16 outputs, R at most ROWS. A threadgroup takes neighbouring
// tiles, PHASE at once; its SIMDGROUPS share K. Each holds the input under its part of K in registers, HELD steps of RUN
// words a lane, and the tiles' weights stream by, those of PHASE tiles on their way. Sums meet in threadgroup memory.
// G: weights a scale, 0 for one scale an output. Where a step's words have PARTS scales, the columns of a matrix that
// rows leave free keep their sums apart: column ROWS * part + row counts the input of this part alone.
constexpr int PARTS = G == 0 || 64 * RUN <= G ? 1 : 64 * RUN / (G == 0 ? 1 : G);
constexpr int COLUMNS = ROWS * PARTS, MATRICES = (COLUMNS + 7) / 8;
constexpr uint SPAN = SIMDGROUPS * HELD;
threadgroup float partial[2][SIMDGROUPS][PHASE][16][COLUMNS];

const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint n = w_shape[0], words = w_shape[1], k = words * 16u, rows = x_shape[0];
const uint steps = words / (4u * RUN), tiles = (n + 15u) / 16u, blocks = threadgroups_per_grid.x;
const uint begin = threadgroup_position_in_grid.x * tiles / blocks;
const uint end = (threadgroup_position_in_grid.x + 1u) * tiles / blocks;

// The steps that this simdgroup wishes of a slice, and where it takes HELD of them; those before its wish count as 0.
uint base = begin, slice = 0u, buffer = 0u;
uint wished = simdgroup * HELD, start = wished + HELD > steps ? steps - HELD : wished;
q2_run<S, RUN, HELD, MATRICES> coming[PHASE];
#pragma unroll
for (int t = 0; t < PHASE; t++)
  q2_fetch<S, G, RUN, HELD, ROWS, PARTS, MATRICES>(coming[t], w, scales, n, k, base + t, start, lane);
tile_x<T> held[HELD][RUN][MATRICES];
bool fresh = true;

while (base < end) {
  const bool whole = slice + SPAN >= steps;
  const uint next_base = whole ? base + PHASE : base, next_slice = whole ? 0u : slice + SPAN;
  const uint next_wished = next_slice + simdgroup * HELD;
  const uint next_start = next_wished + HELD > steps ? steps - HELD : next_wished;
  if (fresh) {
#pragma unroll
    for (int h = 0; h < HELD; h++)
#pragma unroll
      for (int v = 0; v < RUN; v++)
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
          tile_load<T, ROWS, PARTS>(held[h][v][m], x + ((start + h) * 4u * RUN + v) * 16u, RUN * 16u, k,
                                    start + h < wished ? 0u : rows, 8u * m, lane);
  }
#pragma unroll
  for (int t = 0; t < PHASE; t++) {
    if (base + t < end) {
      float sum[MATRICES][4];
      for (int m = 0; m < MATRICES; m++)
        for (int i = 0; i < 4; i++) sum[m][i] = 0.0f;
#pragma unroll
      for (int h = 0; h < HELD; h++) {
        float product[MATRICES][4];
        for (int m = 0; m < MATRICES; m++)
          for (int i = 0; i < 4; i++) product[m][i] = G == 0 ? sum[m][i] : 0.0f;
#pragma unroll
        for (int v = 0; v < RUN; v++)
          q2_tiles_multiply<T, MATRICES>(&product[0][0], held[h][v], coming[t].low[h].word[v],
                                         coming[t].high[h].word[v]);
        for (int m = 0; m < MATRICES; m++)
          for (int i = 0; i < 4; i++) {
            if (G == 0) sum[m][i] = product[m][i];
            else sum[m][i] += float(coming[t].scale[h][m][i]) * product[m][i];
          }
      }
      if (next_base + t < end)
        q2_fetch<S, G, RUN, HELD, ROWS, PARTS, MATRICES>(coming[t], w, scales, n, k, next_base + t, next_start, lane);
      for (int m = 0; m < MATRICES; m++)
        for (int i = 0; i < 4; i++) {
          const uint column = 8u * m + tile_row(lane) + uint(i & 1);
          if (column < COLUMNS) {
            TG(float) cell = &partial[buffer][simdgroup][t][tile_output(lane) + (i < 2 ? 0u : 8u)][column];
            *cell = slice == 0u ? sum[m][i] : *cell + sum[m][i];
          }
        }
    }
  }
  if (whole) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint cell = thread_index_in_threadgroup; cell < 16u * PHASE * ROWS; cell += SIMDGROUPS * 32u) {
      const uint t = cell / (16u * ROWS), output = cell / ROWS % 16u, row = cell % ROWS, to = (base + t) * 16u + output;
      float total = 0.0f;
#pragma unroll
      for (int s = 0; s < SIMDGROUPS; s++)
#pragma unroll
        for (int part = 0; part < PARTS; part++) total += partial[buffer][s][t][output][part * ROWS + row];
      if (base + t < end && to < n && row < rows) {
        if (G == 0) total *= float(scales[to]);
        out[row * n + to] = T(total);
      }
    }
    buffer ^= 1u;
  }
  fresh = steps > SPAN;
  base = next_base;
  slice = next_slice;
  wished = next_wished;
  start = next_start;
}
