// Weighted sums of the values that lie in the cache.

#pragma once

#include <algorithm>
#include <bit>

#include "cached.h"
#include "linear.h"
#include "vectors.h"

// What will be read kAhead keys later is fetched now, in the order of memory and as fast as the arithmetic goes on: in
// bursts, or column by column as values are weighed, it comes a seventh slower. Past the end of the extent this fetches
// a neighbour's keys in vain, which does no harm.
constexpr int64_t kAhead = 32;

template <int kBytes>
inline void fetch(const char* from) {
  for (int byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(from + byte, 0, 2);
}

// Adds the weighted values of the keys `begin` to `end` - 1 to `sums` [R][D], kPairs pairs of vectors of the head
// dimension, whose sums stay in registers. `weight(row, factor)` is the factor of as many keys as the arithmetic takes at
// once. As many bytes are fetched from `ahead` on as are read.
template <typename X, int R, int kPairs, typename T, typename Weight>
inline void weigh_part(Weight weight, const T* values, int64_t begin, int64_t end, int64_t dim, const char* ahead,
                       float* sums) {
  constexpr int kInputs = Arithmetic<X>::kInputs, kBytes = kInputs * kPairs * 2 * kLanes * (int)sizeof(T);
  Floats part[R][2 * kPairs];
  repeat<2 * kPairs * R>([&](auto i) INLINE {
    part[i / (2 * kPairs)][i % (2 * kPairs)] = load(sums + i / (2 * kPairs) * dim + i % (2 * kPairs) * kLanes);
  });
  for (int64_t j = begin; j < end; j += kInputs, ahead += kBytes) {
    fetch<kBytes>(ahead);
    const T *from = values + j * dim, *next = from + (j + 1 < end ? dim : 0);  // what lies past the last key may be NaN
    repeat<kPairs>([&](auto p) INLINE {
      typename Arithmetic<X>::Weights first, second;
      Cached<X, T>::read_values(from + 2 * p * kLanes, next + 2 * p * kLanes, first, second);
      repeat<R>([&](auto r) INLINE {
        const auto factor = weight(r, j / kInputs);
        part[r][2 * p] = Arithmetic<X>::add(part[r][2 * p], factor, first);
        part[r][2 * p + 1] = Arithmetic<X>::add(part[r][2 * p + 1], factor, second);
      });
    });
  }
  repeat<2 * kPairs * R>([&](auto i) INLINE {
    store(sums + i / (2 * kPairs) * dim + i % (2 * kPairs) * kLanes, part[i / (2 * kPairs)][i % (2 * kPairs)]);
  });
}

// Weighted sums [R][D] of `count` keys' values, in the order in which those are read.
template <typename X, int R, typename T, typename Weight>
inline void weigh_values(Weight weight, const T* values, int64_t count, int64_t dim, float* sums) {
  constexpr int kPairs = std::bit_floor(std::clamp<unsigned>(kRowTile / R, 1, 4));  // as many sums as registers hold
  constexpr int64_t kBlock = 32;  // keys whose values stay in the first-level cache for the next part
  std::fill(sums, sums + R * dim, 0.0f);
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    const T* ahead = values + (begin + kAhead) * dim;
    int64_t c = 0;
    for (; c + 2 * kPairs * kLanes <= dim; c += 2 * kPairs * kLanes)
      weigh_part<X, R, kPairs>(weight, values + c, begin, end, dim, (const char*)(ahead + c * (end - begin)), sums + c);
    for (; c < dim; c += 2 * kLanes)
      weigh_part<X, R, 1>(weight, values + c, begin, end, dim, (const char*)(ahead + c * (end - begin)), sums + c);
  }
}
