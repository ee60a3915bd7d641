// One row of a table [V, K], widened: a lane takes a chunk of packed weights.
constexpr int CHUNK = packing<BITS>::CHUNK;
const uint k = K;
const device uint* w = (const device uint*)sheet;
const sheet_parts parts_at = sheet_of<T, BITS, G, BALANCED, BIAS>(sheet_shape[0], k);
const device T* scales = (const device T*)(w + parts_at.scales);
const device T* offsets = (const device T*)(w + parts_at.offsets);
const uint row = uint(token[0]), at = thread_index_in_threadgroup + threadgroup_position_in_grid.x * THREADS;
if (at < k / uint(CHUNK)) {
  float value[CHUNK];
  unpack<T, BITS, G, BALANCED>(w, scales, offsets, k, row, at, value);
  for (int i = 0; i < CHUNK; i++) out[at * CHUNK + i] = value[i] * as_type<float>(int(SCALE));
}
