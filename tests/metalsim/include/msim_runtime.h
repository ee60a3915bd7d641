// msim_runtime.h: runs one Metal threadgroup at a time on the CPU. Each GPU thread is a fiber; a fiber runs until it
// meets a collective (simd_*, quad_*, simdgroup_barrier, threadgroup_barrier) or returns. One OS thread.
#pragma once
#include "msim_fiber.h"

namespace msim {
// Release every lane of simdgroup s that waits on kind k: snapshot their values, mark them ready.
inline void release_sg(unsigned s, Kind k) {
  RT& r = rt();
  SG& g = r.sg[s];
  g.mask = 0;
  for (unsigned l = 0; l < g.n_lanes; l++) {
    Thread& t = r.t[s * W + l];
    if (t.st == BLOCKED && t.wait == k) {
      g.mask |= 1u << l;
      if (t.val) memcpy(g.snap[l], t.val, t.vsize);
      t.st = READY;
      t.wait = K_NONE;
    } else
      memset(g.snap[l], 0xFF, SLOT);  // value of an inactive lane: undefined on the GPU, NaN / all ones here
  }
}
inline bool try_release(unsigned s) {
  RT& r = rt();
  SG& g = r.sg[s];
  Kind k = K_NONE;
  unsigned n = 0;
  for (unsigned l = 0; l < g.n_lanes; l++) {
    Thread& t = r.t[s * W + l];
    if (t.st == DONE) continue;
    if (t.st != BLOCKED || t.wait == K_TGBAR) return false;
    if (k == K_NONE)
      k = t.wait;
    else if (k != t.wait)
      return false;
    n++;
  }
  if (!n) return false;
  release_sg(s, k);
  return true;
}
// Collective across the simdgroup; afterwards rt().sg[..].snap / .mask hold every active lane's value.
template <class T>
inline SG& meet(Kind k, const T& v) {
  static_assert(sizeof(T) <= SLOT, "slot");
  RT& r = rt();
  Thread* c = r.cur;
  T copy = v;
  c->val = &copy;
  c->vsize = sizeof(T);
  c->wait = k;
  c->st = BLOCKED;
  yield();
  return rt().sg[rt().cur->sg];
}
inline void sg_barrier() {
  char z = 0;
  meet(K_SGBAR, z);
}
inline void tg_barrier() {
  RT& r = rt();
  r.cur->val = nullptr;
  r.cur->wait = K_TGBAR;
  r.cur->st = BLOCKED;
  r.bar_wait++;
  yield();
}

template <class T>
inline T& tg_var(const void* key) {
  RT& r = rt();
  for (unsigned i = 0; i < r.nvars; i++)
    if (r.vars[i].key == key) return *(T*)(r.tgmem + r.vars[i].off);
  unsigned off = (r.tgused + 15u) & ~15u;
  if (r.nvars == 64 || off + sizeof(T) > TGMEM)
    fail("threadgroup memory: %u + %zu bytes is over the %d byte limit", off, sizeof(T), TGMEM);
  r.vars[r.nvars++] = {key, off, (unsigned)sizeof(T)};
  r.tgused = off + sizeof(T);
  return *(T*)(r.tgmem + off);
}
inline void describe_stuck(char* out, size_t cap) {
  RT& r = rt();
  size_t p = 0;
  Kind last = (Kind)99;
  State ls = READY;
  for (unsigned i = 0; i < r.n && p + 80 < cap; i++) {
    Thread& t = r.t[i];
    if (t.wait == last && t.st == ls) continue;
    last = t.wait;
    ls = t.st;
    p += snprintf(out + p, cap - p, " thread %u(simdgroup %u lane %u)+: %s;", i, t.sg, t.lane,
                  t.st == DONE ? "returned" : kname(t.wait));
  }
}
inline void run_group() {
  RT& r = rt();
  static unsigned perm[MAXT];
  unsigned n = r.n;
  for (unsigned i = 0; i < n; i++) perm[i] = r.L.order == 1 ? n - 1 - i : i;
  if (r.L.order == 2) {
    static uint32_t s;
    s = s * 747796405u + 2891336453u + r.L.seed;
    for (unsigned i = n - 1; i > 0; i--) {
      s = s * 1664525u + 1013904223u;
      unsigned j = (s >> 8) % (i + 1), x = perm[i];
      perm[i] = perm[j];
      perm[j] = x;
    }
  }
  while (r.done < n) {
    bool ran = false;
    auto run_ready = [&](unsigned first, unsigned last) {
      bool some = false;
      for (unsigned q = 0; q < n; q++) {
        unsigned i = perm[q];
        if (r.t[i].st != READY || r.t[i].sg < first || r.t[i].sg >= last) continue;
        some = true;
        resume(i);
      }
      for (unsigned s = first; s < last; s++)
        if (r.sg[s].n_done < r.sg[s].n_lanes && try_release(s)) some = true;
      return some;
    };
    if (r.L.order == 0) {
      ran = run_ready(0, r.nsg);
    } else {  // one simdgroup after the other, each as far ahead of the rest as barriers let it
      unsigned turn = r.L.order == 1 ? r.nsg - 1 : perm[0] % r.nsg;
      for (unsigned q = 0; q < r.nsg; q++, turn = (turn + r.nsg - 1) % r.nsg)
        while (run_ready(turn, turn + 1)) ran = true;
    }
    if (r.bar_wait && r.bar_wait + r.done == n) {
      if (r.done) {
        char b[600];
        describe_stuck(b, sizeof b);
        fail("threadgroup_barrier not reached by all threads:%s", b);
      }
      for (unsigned i = 0; i < n; i++)
        if (r.t[i].st == BLOCKED) {
          r.t[i].st = READY;
          r.t[i].wait = K_NONE;
        }
      r.bar_wait = 0;
      ran = true;
    }
    if (!ran && r.done < n) {  // divergent collective: some lanes of a simdgroup wait elsewhere
      char b[600];
      describe_stuck(b, sizeof b);
      fail("collective in divergent control flow:%s", b);
    }
  }
}
inline struct sigaction old_segv, old_bus, old_fpe;
struct Range {
  const char *lo, *hi;
  const char* name;
};
inline Range* ranges() {
  static Range r[64];
  return r;
}
inline void on_fault(int sig, siginfo_t* si, void*) {
  RT& r = rt();
  if (!r.in_launch) {
    signal(sig, SIG_DFL);
    raise(sig);
    return;
  }
  const char* a = (const char*)si->si_addr;
  const char* best = "?";
  long off = 0;
  size_t bd = ~(size_t)0;
  char side = '?';
  for (Range* q = ranges(); q->name; q++) {
    size_t d = a < q->lo ? (size_t)(q->lo - a) : a >= q->hi ? (size_t)(a - q->hi) : 0;
    if (d < bd) {
      bd = d;
      best = q->name;
      off = (long)(a - q->lo);
      side = a < q->lo ? '<' : a >= q->hi ? '>' : 'w';
    }
  }
  Thread* c = r.cur;
  if (a >= r.stacks && a < r.stacks + (size_t)MAXT * STACK) {
    snprintf(r.err, sizeof r.err, "thread-private memory over %d bytes (stack overflow) in thread (%u,%u,%u)", STACK,
             c->tid.x, c->tid.y, c->tid.z);
    r.failed = true;
    siglongjmp(r.jb, 1);
  }
  snprintf(r.err, sizeof r.err, "%s at buffer '%s' byte offset %ld (%s) by thread (%u,%u,%u) of threadgroup (%u,%u,%u)",
           sig == SIGFPE ? "integer division fault" : "bad access", best, off,
           side == 'w'   ? "write to a read-only input"
           : side == '<' ? "before its start"
                         : "past its end",
           c->tid.x, c->tid.y, c->tid.z, c->tg_pos.x, c->tg_pos.y, c->tg_pos.z);
  r.failed = true;
  siglongjmp(r.jb, 1);
}
inline int launch(const Launch& L, void (*body)(void*), void* arg) {
  RT& r = rt();
  r.L = L;
  r.body = body;
  r.arg = arg;
  r.failed = false;
  r.err[0] = 0;
  if (!r.stacks)
    r.stacks = (char*)mmap(nullptr, (size_t)MAXT * STACK, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  memset(r.fibers_ready, 0, sizeof r.fibers_ready);
  D3 tg = {L.tg.x < L.grid.x ? L.tg.x : L.grid.x, L.tg.y < L.grid.y ? L.tg.y : L.grid.y,
           L.tg.z < L.grid.z ? L.tg.z : L.grid.z};  // as MLX does
  if (!tg.x || !tg.y || !tg.z || (uint64_t)tg.x * tg.y * tg.z > MAXT) {
    snprintf(r.err, sizeof r.err, "threadgroup size (%u,%u,%u)", tg.x, tg.y, tg.z);
    return 1;
  }
  D3 cnt = {(L.grid.x + tg.x - 1) / tg.x, (L.grid.y + tg.y - 1) / tg.y, (L.grid.z + tg.z - 1) / tg.z};
  r.tg_count = cnt;
  r.L.tg = tg;
  struct sigaction sa;
  memset(&sa, 0, sizeof sa);
  sa.sa_sigaction = on_fault;
  sa.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  static char alt[65536];
  stack_t ss, old_ss;
  memset(&ss, 0, sizeof ss);
  ss.ss_sp = alt;
  ss.ss_size = sizeof alt;
  sigaltstack(&ss, &old_ss);
  sigaction(SIGSEGV, &sa, &old_segv);
  sigaction(SIGBUS, &sa, &old_bus);
  sigaction(SIGFPE, &sa, &old_fpe);
  r.in_launch = true;
  if (!sigsetjmp(r.jb, 1)) {
    uint64_t total = (uint64_t)cnt.x * cnt.y * cnt.z;
    for (uint64_t q = 0; q < total; q++) {
      uint64_t g = L.order == 1 ? total - 1 - q : q;
      D3 p = {(unsigned)(g % cnt.x), (unsigned)(g / cnt.x % cnt.y), (unsigned)(g / cnt.x / cnt.y)};
      auto edge = [](unsigned pos, unsigned t, unsigned G) {
        unsigned left = G - pos * t;
        return left < t ? left : t;
      };  // dispatchThreads trims the last groups
      D3 e = {edge(p.x, tg.x, L.grid.x), edge(p.y, tg.y, L.grid.y), edge(p.z, tg.z, L.grid.z)};
      r.n = e.x * e.y * e.z;
      r.nsg = (r.n + W - 1) / W;
      r.done = r.bar_wait = 0;
      r.nvars = 0;
      r.tgused = 0;
      memset(r.tgmem, 0xFF, TGMEM);  // uninitialised threadgroup memory reads as NaN
      for (unsigned s = 0; s < r.nsg; s++) {
        r.sg[s].n_lanes = r.n - s * W < W ? r.n - s * W : W;
        r.sg[s].n_done = 0;
      }
      for (unsigned i = 0; i < r.n; i++) {
        Thread& t = r.t[i];
        t.tid = {i % e.x, i / e.x % e.y, i / e.x / e.y};
        t.tg_pos = p;
        t.tpt = e;
        t.flat = i;
        t.lane = i % W;
        t.sg = i / W;
        t.gid = {p.x * tg.x + t.tid.x, p.y * tg.y + t.tid.y, p.z * tg.z + t.tid.z};
        t.st = READY;
        t.wait = K_NONE;
        make_fiber(i);
      }
      run_group();
    }
  }
  r.in_launch = false;
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaction(SIGFPE, &old_fpe, nullptr);
  sigaltstack(&old_ss, nullptr);
  return r.failed ? 1 : 0;
}
}  // namespace msim
