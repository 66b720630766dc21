// Attention of a ragged batch over the cache: every sequence's keys and values lie in one contiguous extent.
//
// The query heads of one key-value head, of one new token or of several neighbours, are rows that read the same keys; a
// piece of them does so together. Here are the narrow pieces, in which a vector is a stretch of the head dimension.

#pragma once

#include <algorithm>
#include <vector>

#include "cached.h"
#include "linear.h"
#include "pieces.h"
#include "team.h"
#include "vectors.h"
#include "weighing.h"
#include "wide_attention.h"

// Scores of R rows with the keys `first` to `first` + kLanes - 1; past the last key, that one again.
template <typename X, int R, typename T>
inline void score_block(const typename Cached<X, T>::Query* query, const T* keys, int64_t first, int64_t count,
                        int64_t dim, float scale, float* scores, int64_t stride) {
  constexpr int kKeys = R * 4 <= kRowTile * 2 ? 4 : 2;  // as many sums as registers hold
  constexpr int kBytes = kKeys * 2 * kLanes * (int)sizeof(T);
  Floats parts[R][kLanes / kKeys];
#pragma GCC unroll 8
  for (int group = 0; group < kLanes / kKeys; group++) {
    const T* at[kKeys];
    for (int k = 0; k < kKeys; k++) at[k] = keys + std::min(first + group * kKeys + k, count - 1) * dim;
    const char* ahead = (const char*)(at[0] + kAhead * dim);
    Floats sums[R][kKeys];
    for (int r = 0; r < R; r++)
      for (int k = 0; k < kKeys; k++) sums[r][k] = splat(0.0f);
    for (int64_t c = 0; c < dim; c += 2 * kLanes, ahead += kBytes) {
      fetch<kBytes>(ahead);
#pragma GCC unroll 4
      for (int k = 0; k < kKeys; k++) {
        const auto key = Cached<X, T>::read_key(at[k] + c);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) sums[r][k] = Cached<X, T>::add(sums[r][k], key, query + r * dim + c);
      }
    }
    for (int r = 0; r < R; r++) parts[r][group] = sums_of<kKeys>(sums[r]);
  }
  for (int r = 0; r < R; r++)
    store(scores + r * stride + first, sums_of<kLanes / kKeys, kKeys>(parts[r]) * scale);
}

// Turns the first `count` scores into weights and returns what those add up to; the rest of `padded`, a whole number of
// vectors, weighs nothing.
inline float weigh_scores(float* scores, int64_t count, int64_t padded) {
  std::fill(scores + count, scores + padded, -INFINITY);
  Floats highest = load(scores);
  for (int64_t j = kLanes; j < padded; j += kLanes) {
    const Floats value = load(scores + j);
    highest = value > highest ? value : highest;
  }
  float top = highest[0];
  for (int lane = 1; lane < kLanes; lane++) top = std::max(top, highest[lane]);
  Floats total = splat(0.0f);
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Floats value = exponential(load(scores + j) - top);
    store(scores + j, value);
    total += value;
  }
  std::fill(scores + count, scores + padded, 0.0f);
  // Padding has added exp(-87) at most, which float32 cannot see beside the 1 of the highest score.
  return sum(total);
}

template <typename X, int R, typename T, typename Out>
void attend_narrow(const Heads& heads, const Piece& piece, const float* query, const T* keys, const T* values, Out* out,
                   std::vector<float>& room) {
  const int64_t dim = heads.dim, count = piece.last_key(heads, R - 1) + 1;
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes, stride = padded / Arithmetic<X>::kInputs;
  const int64_t size = R * (2 * padded + 2 * dim) + dim;
  if ((int64_t)room.size() < size) room.resize(size);
  float *const scores = room.data(), *const sums = scores + R * padded, *const row = sums + R * dim;
  const auto rows = (typename Cached<X, T>::Query*)(row + dim);
  const auto weights = (typename Arithmetic<X>::Factor*)(row + dim + R * dim);
  keys += piece.extent(heads), values += piece.extent(heads);
  for (int r = 0; r < R; r++) Cached<X, T>::arrange(query + piece.place(heads, r), dim, rows + r * dim);
  for (int64_t key = 0; key < count; key += kLanes)
    score_block<X, R>(rows, keys, key, count, dim, heads.scale, scores, padded);
  float totals[R];
  for (int r = 0; r < R; r++) {
    totals[r] = weigh_scores(scores + r * padded, piece.last_key(heads, r) + 1, padded);
    for (int64_t j = 0; j < padded; j += kLanes)
      Arithmetic<X>::round(load(scores + r * padded + j), weights + r * stride + j / Arithmetic<X>::kInputs);
  }
  const auto weight = [&](auto r, int64_t factor) INLINE { return weights[r * stride + factor]; };
  weigh_values<X, R>(weight, values, count, dim, sums);
  for (int r = 0; r < R; r++) {
    Cached<X, T>::restore(sums + r * dim, dim, row);
    Out* to = out + piece.place(heads, r);
    const float inverse = 1.0f / totals[r];
    for (int64_t c = 0; c < dim; c += kLanes) store(to + c, load(row + c) * inverse);
  }
}

template <typename X, typename T, typename Out, int... R>
auto choose_narrow(int64_t rows, std::integer_sequence<int, R...>) {
  static constexpr decltype(&attend_narrow<X, 1, T, Out>) functions[] = {attend_narrow<X, R + 1, T, Out>...};
  return functions[rows - 1];
}

// Whether there are wide pieces for this arithmetic.
template <typename X, typename T>
constexpr bool has_wide() {
  return sizeof(X) == 2 && sizeof(T) == 2;
}

// `out` [T, N D]; products in the arithmetic of X.
template <typename X, typename T, typename Out>
void attend(Team& team, const Heads& heads, const std::vector<Piece>& pieces, const float* query, const T* keys,
            const T* values, Out* out, std::vector<float>& room) {
  team.share((int64_t)pieces.size(), 1, [&](int64_t index) {
    const Piece& piece = pieces[index];
    if constexpr (has_wide<X, T>())
      if (piece.count > kNarrowRows) return attend_wide(heads, piece, query, keys, values, out, room);
    constexpr auto kHeights = std::make_integer_sequence<int, kNarrowRows>();
    choose_narrow<X, T, Out>(piece.count, kHeights)(heads, piece, query, keys, values, out, room);
  });
}
