// msim_fiber.h: what the simulator keeps of a threadgroup, and its GPU threads as fibers of one OS thread.
#pragma once
#include <csetjmp>
#include <cstdarg>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace msim {
struct D3 {
  unsigned x, y, z;
};
struct Launch {
  D3 grid, tg;
  int order, seed;  // order: 0 forward, 1 reverse, 2 random
};
enum Kind : uint32_t {
  K_NONE = 0,
  K_TGBAR,
  K_SGBAR,
  K_SUM,
  K_PROD,
  K_MAX,
  K_MIN,
  K_AND,
  K_OR,
  K_XOR,
  K_SHUF,
  K_VOTE,
  K_SCAN,
  K_MATRIX,
  K_QUAD
};
enum State : uint8_t { READY, BLOCKED, DONE };
constexpr int W = 32, MAXT = 1024, STACK = 256 << 10, TGMEM = 32 << 10, SLOT = 64;

struct Thread {
  D3 tid, gid, tg_pos, tpt;
  unsigned flat, lane, sg;
  State st;
  Kind wait;
  const void* val;
  uint32_t vsize;
  void* sp;
};
struct SG {
  unsigned n_lanes, n_done;
  uint32_t mask;
  alignas(64) unsigned char snap[W][SLOT];
};
struct RT {
  Thread t[MAXT];
  SG sg[MAXT / W];
  unsigned n, nsg;
  Thread* cur;
  void* main_sp;
  char* stacks;
  bool guarded[MAXT];
  void (*body)(void*);
  void* arg;
  Launch L;
  D3 tg_count;
  bool fibers_ready[MAXT];
  alignas(64) unsigned char tgmem[TGMEM];
  struct {
    const void* key;
    unsigned off, size;
  } vars[64];
  unsigned nvars, tgused;
  unsigned bar_wait, done;
  char err[1024];
  bool failed;
  sigjmp_buf jb;
  volatile bool in_launch;
};
inline RT& rt() {
  static RT* r = (RT*)calloc(1, sizeof(RT));
  return *r;
}

#if defined(__x86_64__)
extern "C" void msim_swap(void** save, void* to);
asm(R"(
.text
.weak msim_swap
.type msim_swap,@function
msim_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
inline void swap_to(void** save, void* to) { msim_swap(save, to); }
#else  // any other CPU: slower, portable
inline ucontext_t* uc_of(void** p) {
  if (!*p) *p = calloc(1, sizeof(ucontext_t));
  return (ucontext_t*)*p;
}
#endif

[[noreturn]] inline void fail(const char* fmt, ...) {
  RT& r = rt();
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(r.err, sizeof r.err, fmt, ap);
  va_end(ap);
  r.failed = true;
  siglongjmp(r.jb, 1);
}
inline const char* kname(Kind k) {
  static const char* n[] = {"none",
                            "threadgroup_barrier",
                            "simdgroup_barrier",
                            "simd_sum",
                            "simd_product",
                            "simd_max",
                            "simd_min",
                            "simd_and",
                            "simd_or",
                            "simd_xor",
                            "simd_shuffle/broadcast",
                            "simd_vote",
                            "simd_prefix",
                            "simdgroup_matrix",
                            "quad op"};
  return n[k];
}
inline void yield() {
  RT& r = rt();
#if defined(__x86_64__)
  swap_to(&r.cur->sp, r.main_sp);
#else
  swapcontext(uc_of(&r.cur->sp), uc_of(&r.main_sp));
#endif
}
inline void fiber_main() {
  for (;;) {
    RT& r = rt();
    r.body(r.arg);
    Thread* c = rt().cur;
    c->st = DONE;
    rt().done++;
    rt().sg[c->sg].n_done++;
    yield();
  }
}
inline void make_fiber(unsigned i) {
  RT& r = rt();
  if (r.fibers_ready[i]) return;
  r.fibers_ready[i] = true;
  char* top = r.stacks + (size_t)(i + 1) * STACK;
  if (!r.guarded[i]) {
    mprotect(top - STACK, 4096, PROT_NONE);
    r.guarded[i] = true;
  }
#if defined(__x86_64__)
  void** sp = (void**)top;
  *--sp = nullptr;
  *--sp = (void*)fiber_main;
  for (int k = 0; k < 6; k++) *--sp = nullptr;
  r.t[i].sp = sp;
#else
  ucontext_t* u = uc_of(&r.t[i].sp);
  getcontext(u);
  u->uc_stack.ss_sp = top - STACK;
  u->uc_stack.ss_size = STACK;
  makecontext(u, fiber_main, 0);
#endif
}
inline void resume(unsigned i) {
  RT& r = rt();
  r.cur = &r.t[i];
#if defined(__x86_64__)
  swap_to(&r.main_sp, r.cur->sp);
#else
  swapcontext(uc_of(&r.main_sp), uc_of(&r.cur->sp));
#endif
}
}  // namespace msim
