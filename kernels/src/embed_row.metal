// One row of a table [V, K], widened: a lane takes a chunk of packed weights.
constexpr int CHUNK = packing<BITS>::CHUNK;
const uint k = K, row = uint(token[0]), at = thread_index_in_threadgroup + threadgroup_position_in_grid.x * THREADS;
if (at < k / uint(CHUNK)) {
  float value[CHUNK];
  unpack<T, BITS, G>((const device uint*)w, scales, offsets, k, row, at, value);
  for (int i = 0; i < CHUNK; i++) out[at * CHUNK + i] = value[i] * as_type<float>(int(SCALE));
}
