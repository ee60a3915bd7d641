from __future__ import annotations

from msl_names import declared_names

HEADER = """
#define LOWEST -1e30f
#define LOAD(HOW) \\
  asm(HOW : : "r"(at))
#undef LOAD
typedef unsigned int word;  // typedef int commented;
constexpr int COUNT = 4;
template <int BITS> struct packing { enum { CHUNK = 8 }; };
template <> struct packing<2> { void method() { int local; } };
struct alignas(16) run { float value[8]; };
template <typename T, int N> inline run_of<N>* first_of(const device T* p, uint n) { return made(p); }
template <> inline uint word_of<half>(float low) { uint inner = 1; return inner; }
inline void word_of(TG(float) p) {}
namespace metal { inline float exp(float x) { return x; } }
"""


def test_names_outside_braces_are_found():
    assert declared_names(HEADER) == {"LOWEST", "word", "COUNT", "packing", "run", "first_of", "word_of"}
