// A team of threads that goes through many short pieces of work together.
//
// A layer is a dozen pieces of work, each of which needs all of the one before. Waking threads for each piece costs more
// than some pieces take, so they stay together for a whole step and meet at barriers that spin for a moment before they
// sleep. Pieces are handed out item by item, so a thread that the system has taken off its core holds nobody up for long.

#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Team {
 public:
  // Calls `work(team)` on `threads` threads, or as many as there are to be had.
  template <typename Work>
  static void run(int threads, Work work) {
    if (threads <= 1) {
      Team team(1);
      work(team);
      return;
    }
    Team team(threads);
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
      team.size_ = omp_get_num_threads();
      work(team);
    }
  }

  // Every thread calls this with the same arguments: each item from 0 to `count` - 1 is done by one of them, `grain`
  // neighbours in a row, and all are done when it returns.
  template <typename Item>
  void share(int64_t count, int64_t grain, Item item) {
    for (int64_t first; (first = next_.fetch_add(grain, std::memory_order_relaxed)) < count;)
      for (int64_t index = first; index < std::min(count, first + grain); index++) item(index);
    meet();
  }

 private:
  static constexpr int kSpins = 1000;  // some tens of microseconds; whoever is later than that was taken off its core

  explicit Team(int size) : size_(size) {}

  void meet() {
    const int round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      round_.store(round ^ 1, std::memory_order_release);
      round_.notify_all();
      return;
    }
    for (int spins = 0; spins < kSpins; spins++) {
      if (round_.load(std::memory_order_acquire) != round) return;
      pause_briefly();
    }
    round_.wait(round, std::memory_order_acquire);
  }

  int size_;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};  // 0 and 1 in turn
};
