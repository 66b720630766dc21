// Attention of many rows that read the same keys, as a prompt has them, in products of pairs of bfloat16 numbers.
//
// A row is a lane: keys come as single words that all rows are multiplied by, so nothing is ever added up across a
// vector. In attention.h, where a vector is a stretch of the head dimension, every score is.

#pragma once

#include <algorithm>
#include <vector>

#include "cached.h"
#include "linear.h"
#include "pieces.h"
#include "vectors.h"
#include "weighing.h"

constexpr int kWideKeys = kRowTile;             // whose scores are summed up at once: two vectors each
constexpr int kWeighedRows = kRowTile * 2 / 3;  // whose values are
static_assert(kWideRows % kWeighedRows == 0);

// Queries [kWideRows][D] -> words [D / 2][kWideRows]; lanes beyond `count` are 0.
template <typename Row>
inline void lay_out_queries(int64_t count, int64_t dim, Row row, uint32_t* words) {
  for (int64_t r = 0; r < count; r++)  // they lie apart, a token's heads together
    for (int64_t c = 0; c < dim; c += kLanes) __builtin_prefetch(row(r) + c, 0, 2);
  std::fill(words, words + dim / 2 * kWideRows, 0);
  for (int64_t r = 0; r < count; r++) {
    const float* from = row(r);
    for (int64_t c = 0; c < dim; c += kLanes) {
      uint32_t pairs[kLanes / 2];
      Arithmetic<BFloat16>::round(load(from + c), pairs);
      for (int i = 0; i < kLanes / 2; i++) words[(c / 2 + i) * kWideRows + r] = pairs[i];
    }
  }
}

// Scores [keys][kWideRows] of keys `first` to `first` + kWideKeys - 1; past the last key, that one again.
inline void score_wide(const uint32_t* query, const BFloat16* keys, int64_t first, int64_t count, int64_t dim,
                       float scale, float* scores) {
  const uint32_t* at[kWideKeys];
  for (int k = 0; k < kWideKeys; k++) at[k] = (const uint32_t*)(keys + std::min(first + k, count - 1) * dim);
  Floats sums[kWideKeys][2];
  repeat<kWideKeys>([&](auto k) INLINE { sums[k][0] = sums[k][1] = splat(0.0f); });
  for (int64_t c = 0; c < dim / 2; c++, query += kWideRows) {
    Words low, high;
    Arithmetic<BFloat16>::read(query, low, high);
    repeat<kWideKeys>([&](auto k) INLINE {
      const Words key = splat(at[k][c]);
      sums[k][0] = add_products(sums[k][0], low, key);
      sums[k][1] = add_products(sums[k][1], high, key);
    });
  }
  repeat<kWideKeys>([&](auto k) INLINE {
    store(scores + (first + k) * kWideRows, sums[k][0] * scale);
    store(scores + (first + k) * kWideRows + kLanes, sums[k][1] * scale);
  });
}

// Scores [keys][kWideRows] of `count` keys -> weights, a word for two keys, [count / 2, rounded up][kWideRows], and what a
// row's weights add up to. Row r sees the keys up to `last[r]`; all rows see the first `common`, an even number.
inline void weigh_wide(const float* scores, int64_t count, int64_t common, const int32_t* last, uint32_t* weights,
                       float* totals) {
  for (int half = 0; half < kWideRows; half += kLanes) {
    Ints limits;
    std::memcpy(&limits, last + half, sizeof limits);
    const auto score = [&](int64_t key) INLINE { return load(scores + key * kWideRows + half); };
    const auto if_seen = [&](int64_t key, Floats value, float otherwise) INLINE {
      return (int32_t)key - Ints{} <= limits ? value : splat(otherwise);
    };
    Floats top = splat(-INFINITY), total = splat(0.0f);
    const auto raise = [&](Floats value) INLINE { top = value > top ? value : top; };
    for (int64_t key = 0; key < common; key++) raise(score(key));
    for (int64_t key = common; key < count; key++) raise(if_seen(key, score(key), -INFINITY));
    const auto put = [&](int64_t key, Floats low, Floats high) INLINE {
      const Words words = pair(low, high);
      std::memcpy(weights + key / 2 * kWideRows + half, &words, sizeof words);
      total += low + high;
    };
    for (int64_t key = 0; key < common; key += 2)
      put(key, exponential(score(key) - top), exponential(score(key + 1) - top));
    for (int64_t key = common; key < count; key += 2)  // whatever lies behind the last score, nobody sees it
      put(key, if_seen(key, exponential(score(key) - top), 0.0f),
          if_seen(key + 1, exponential(score(key + 1) - top), 0.0f));
    store(totals + half, total);
  }
}

template <typename Out>
void attend_wide(const Heads& heads, const Piece& piece, const float* query, const BFloat16* keys,
                 const BFloat16* values, Out* out, std::vector<float>& room) {
  const int64_t dim = heads.dim, count = piece.last_key(heads, piece.count - 1) + 1;
  const int64_t padded = (count + 1 + kWideKeys) / kWideKeys * kWideKeys;  // room for one more than there are
  const int64_t size = kWideRows * (padded + (count + 1) / 2 + dim / 2) + kWeighedRows * dim + dim;
  if ((int64_t)room.size() < size) room.resize(size);
  float *const scores = room.data(), *const sums = scores + kWideRows * padded, *const row = sums + kWeighedRows * dim;
  const auto words = (uint32_t*)(row + dim), weights = words + kWideRows * dim / 2;
  keys += piece.extent(heads), values += piece.extent(heads);
  lay_out_queries(piece.count, dim, [&](int64_t r) { return query + piece.place(heads, r); }, words);
  for (int64_t key = 0; key < count; key += kWideKeys) score_wide(words, keys, key, count, dim, heads.scale, scores);
  int32_t last[kWideRows];
  for (int64_t r = 0; r < kWideRows; r++) last[r] = (int32_t)piece.last_key(heads, std::min(r, piece.count - 1));
  float totals[kWideRows];
  weigh_wide(scores, count, (last[0] + 1) / 2 * 2, last, weights, totals);
  for (int64_t first = 0; first < piece.count; first += kWeighedRows) {
    const auto weight = [&](auto r, int64_t factor) INLINE { return weights[factor * kWideRows + first + r]; };
    weigh_values<BFloat16, kWeighedRows>(weight, values, count, dim, sums);
    for (int64_t r = 0; r < std::min<int64_t>(kWeighedRows, piece.count - first); r++) {
      Cached<BFloat16, BFloat16>::restore(sums + r * dim, dim, row);
      Out* to = out + piece.place(heads, first + r);
      const float inverse = 1.0f / totals[first + r];
      for (int64_t c = 0; c < dim; c += kLanes) store(to + c, load(row + c) * inverse);
    }
  }
}
