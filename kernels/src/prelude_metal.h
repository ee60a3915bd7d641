// Names that the kernel bodies use on both back-ends, for Metal. prelude_cuda.h gives the same names to CUDA.

#define TG(T) threadgroup T*

template <int V> struct word_run { uint word[V]; };

// V consecutive words in one load; `p` is aligned to all of them.
inline void load_words(const device uint* p, thread word_run<1>& run) { run.word[0] = p[0]; }
inline void load_words(const device uint* p, thread word_run<2>& run) {
  uint2 v = *(const device uint2*)p;
  run.word[0] = v.x; run.word[1] = v.y;
}
inline void load_words(const device uint* p, thread word_run<4>& run) {
  uint4 v = *(const device uint4*)p;
  run.word[0] = v.x; run.word[1] = v.y; run.word[2] = v.z; run.word[3] = v.w;
}

inline float half_low(uint word) { return float(as_type<half2>(word).x); }
inline float half_high(uint word) { return float(as_type<half2>(word).y); }

inline uint keep_and_set(uint word, uint mask, uint set) { return (word & mask) | set; }
