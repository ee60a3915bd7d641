// x [R, K] times balanced 2-bit w [N, K], by matrix tiles: TILES tiles of 16 outputs a threadgroup, R at most ROWS. Its
// SIMDGROUPS share K. Each holds the input under its part of K in registers, HELD steps of RUN words a lane, and the
// tiles' weights stream by, those of AHEAD tiles on their way. PHASE tiles' sums at a time meet in threadgroup memory.
// G: weights a scale, 0 for one scale an output. Where a step's words have PARTS scales, the columns of a matrix that
// rows leave free keep their sums apart: column ROWS * part + row counts the input of this part alone. SPREAD: see q2_run.
// EARLY: all that is ahead is read before the input. CUDA's compiler puts it off until the first tile is done otherwise.
constexpr int PARTS = G == 0 || 64 * RUN <= G ? 1 : 64 * RUN / (G == 0 ? 1 : G);
constexpr int COLUMNS = ROWS * PARTS, MATRICES = (COLUMNS + 7) / 8;
constexpr uint SPAN = SIMDGROUPS * HELD;
threadgroup float partial[SIMDGROUPS][PHASE][16][COLUMNS];
threadgroup float whole_scale[16 * TILES];

const uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
const uint index = thread_index_in_threadgroup;
const uint n = w_shape[0], k = w_shape[1] * 16u, rows = x_shape[0], steps = w_shape[1] / (4u * RUN);
const uint first = threadgroup_position_in_grid.x * TILES;

// An output's only scale is read now, and not when all else is done.
const uint scaled = 16u * first + index;
S own_scale = scales[0];
if (G == 0) own_scale = scales[scaled < n ? scaled : n - 1u];

for (uint slice = 0; slice < steps; slice += SPAN) {
  // A part that would end past the rows begins earlier; what it has in common with others counts as 0.
  const uint wished = slice + simdgroup * HELD, start = wished + HELD > steps ? steps - HELD : wished;
  q2_run<S, G, RUN, HELD, MATRICES, ROWS == 1 ? 2 : 1> low[AHEAD], high[AHEAD];
#pragma unroll
  for (int t = 0; t < AHEAD; t++) {
    q2_fetch<S, G, RUN, HELD, ROWS, PARTS, MATRICES, SPREAD>(low[t], w, scales, q2_output(first + t, 0u, n, lane), k,
                                                             start, lane);
    q2_fetch<S, G, RUN, HELD, ROWS, PARTS, MATRICES, SPREAD>(high[t], w, scales, q2_output(first + t, 8u, n, lane), k,
                                                             start, lane);
  }
  if (EARLY) simdgroup_barrier(mem_flags::mem_none);
  tile_x<T> held[HELD][RUN][MATRICES];
#pragma unroll
  for (int h = 0; h < HELD; h++)
#pragma unroll
    for (int m = 0; m < MATRICES; m++)
      tile_load_run<T, ROWS, PARTS, RUN, MATRICES>(&held[h][0][m], x + (start + h) * 64u * RUN, k,
                                                   start + h < wished ? 0u : rows, 8u * m, lane);
#pragma unroll
  for (int t = 0; t < TILES; t++) {
    if (SPREAD) {
      q2_spread(low[t % AHEAD], lane);
      q2_spread(high[t % AHEAD], lane);
    }
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
        q2_tiles_multiply<T, MATRICES>(&product[0][0], held[h][v], low[t % AHEAD].words[h].word[v],
                                       high[t % AHEAD].words[h].word[v]);
      for (int m = 0; m < MATRICES; m++)
        for (int i = 0; i < 4; i++) {
          if (G == 0) sum[m][i] = product[m][i];
          else if (i < 2) sum[m][i] += q2_scale<SPREAD>(low[t % AHEAD], h, 2 * m + i) * product[m][i];
          else sum[m][i] += q2_scale<SPREAD>(high[t % AHEAD], h, 2 * m + i - 2) * product[m][i];
        }
    }
    if (t + AHEAD < TILES) {
      q2_fetch<S, G, RUN, HELD, ROWS, PARTS, MATRICES, SPREAD>(low[t % AHEAD], w, scales,
          q2_output(first + t + AHEAD, 0u, n, lane), k, start, lane);
      q2_fetch<S, G, RUN, HELD, ROWS, PARTS, MATRICES, SPREAD>(high[t % AHEAD], w, scales,
          q2_output(first + t + AHEAD, 8u, n, lane), k, start, lane);
    }
    for (int m = 0; m < MATRICES; m++)
      for (int i = 0; i < 4; i++) {
        const uint column = 8u * m + tile_row(lane) + uint(i & 1);
        if (column < COLUMNS) {
          TG(float) cell = &partial[simdgroup][t % PHASE][tile_output(lane) + (i < 2 ? 0u : 8u)][column];
          *cell = slice == 0u ? sum[m][i] : *cell + sum[m][i];
        }
      }
    // With several slices, PHASE is TILES.
    if ((t % PHASE == PHASE - 1 || t == TILES - 1) && slice + SPAN >= steps) {
      const uint begin = t - t % PHASE;
      if (G == 0 && t < PHASE && index < 16u * TILES) whole_scale[index] = float(own_scale);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      for (uint cell = index; cell < 16u * ROWS * (t % PHASE + 1); cell += SIMDGROUPS * 32u) {
        const uint tile = cell / (16u * ROWS), output = cell / ROWS % 16u, row = cell % ROWS;
        const uint to = (first + begin + tile) * 16u + output;
        float total = 0.0f;
        for (int s = 0; s < SIMDGROUPS; s++)
          for (int part = 0; part < PARTS; part++) total += partial[s][tile][output][part * ROWS + row];
        if (to < n && row < rows) {
          if (G == 0) total *= whole_scale[16u * (begin + tile) + output];
          out[row * n + to] = T(total);
        }
      }
      if (t < TILES - 1) threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
}
