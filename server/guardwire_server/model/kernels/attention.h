// Attention of a ragged batch over the cache: every sequence's keys and values lie in one contiguous extent.
//
// The query heads of one key-value head, of one new token or of several neighbours, are rows that read the same keys;
// up to kMaxRows of them do so together.

#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include "cached.h"
#include "norms.h"
#include "team.h"
#include "vectors.h"

constexpr int kMaxRows = 6;

// What will be read kAhead keys later is fetched now, in the order of memory and as fast as the arithmetic goes on: in
// bursts, or column by column as values are weighed, it comes a seventh slower. Past the end of the extent this fetches
// a neighbour's keys in vain, which does no harm.
constexpr int64_t kAhead = 32;

template <int kBytes>
inline void fetch(const char* from) {
  for (int byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(from + byte, 0, 2);
}

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

// Adds the weighted values of `count` keys to `sums` [R][D], kPairs pairs of vectors of the head dimension, whose sums
// stay in registers. As many bytes are fetched from `ahead` on as are read.
template <typename X, int R, int kPairs, typename T>
inline void weigh_part(const typename Arithmetic<X>::Factor* weights, int64_t stride, const T* values, int64_t count,
                       int64_t dim, const char* ahead, float* sums) {
  constexpr int kInputs = Arithmetic<X>::kInputs, kBytes = kInputs * kPairs * 2 * kLanes * (int)sizeof(T);
  Floats part[R][2 * kPairs];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < 2 * kPairs; p++) part[r][p] = load(sums + r * dim + p * kLanes);
  for (int64_t j = 0; j < count; j += kInputs, ahead += kBytes) {
    fetch<kBytes>(ahead);
    const T *from = values + j * dim, *next = from + (j + 1 < count ? dim : 0);  // what lies past the last key may be NaN
    repeat<kPairs>([&](auto p) INLINE {
      typename Arithmetic<X>::Weights first, second;
      Cached<X, T>::read_values(from + 2 * p * kLanes, next + 2 * p * kLanes, first, second);
      repeat<R>([&](auto r) INLINE {
        const auto weight = weights[r * stride + j / kInputs];
        part[r][2 * p] = Arithmetic<X>::add(part[r][2 * p], weight, first);
        part[r][2 * p + 1] = Arithmetic<X>::add(part[r][2 * p + 1], weight, second);
      });
    });
  }
  for (int r = 0; r < R; r++)
    for (int p = 0; p < 2 * kPairs; p++) store(sums + r * dim + p * kLanes, part[r][p]);
}

// Weighted sums of `count` keys' values, in the order in which those are read.
template <typename X, int R, typename T>
inline void weigh_values(const typename Arithmetic<X>::Factor* weights, int64_t stride, const T* values, int64_t count,
                         int64_t dim, float* sums) {
  constexpr int kPairs = std::bit_floor(std::clamp<unsigned>(kRowTile / R, 1, 4));  // as many sums as registers hold
  constexpr int64_t kBlock = 32;  // keys whose values stay in the first-level cache for the next part
  std::fill(sums, sums + R * dim, 0.0f);
  for (int64_t j = 0; j < count; j += kBlock) {
    const int64_t some = std::min(kBlock, count - j);
    const T *block = values + j * dim, *ahead = block + kAhead * dim;
    const auto* factors = weights + j / Arithmetic<X>::kInputs;
    int64_t c = 0;
    for (; c + 2 * kPairs * kLanes <= dim; c += 2 * kPairs * kLanes)
      weigh_part<X, R, kPairs>(factors, stride, block + c, some, dim, (const char*)(ahead + c * some), sums + c);
    for (; c < dim; c += 2 * kLanes)
      weigh_part<X, R, 1>(factors, stride, block + c, some, dim, (const char*)(ahead + c * some), sums + c);
  }
}

// A piece of attention: the rows `first` to `first + count` - 1 of a segment, for one key-value head. Row f is query
// head f % G, of that key-value head, of the segment's token f / G.
struct Piece {
  const int64_t* segment;  // first slot, cached tokens, first row and one past the last row of the batch
  int64_t kv_head, first, count;
};

template <typename X, int R, typename T, typename Out>
void attend_piece(const Heads& heads, const Piece& piece, const float* query, const T* keys, const T* values, Out* out,
                  std::vector<float>& room) {
  const int64_t groups = heads.queries / heads.kv, dim = heads.dim, past = piece.segment[1];
  const int64_t visible = past + (piece.first + R - 1) / groups + 1;  // keys that the last row sees
  const int64_t padded = (visible + kLanes - 1) / kLanes * kLanes, stride = padded / Arithmetic<X>::kInputs;
  if ((int64_t)room.size() < R * (2 * padded + 2 * dim) + dim) room.resize(R * (2 * padded + 2 * dim) + dim);
  float *const scores = room.data(), *const sums = scores + R * padded, *const row = sums + R * dim;
  const auto rows = (typename Cached<X, T>::Query*)(row + dim);
  const auto weights = (typename Arithmetic<X>::Factor*)(row + dim + R * dim);
  const auto place = [&](int r) {
    const int64_t token = piece.segment[2] + (piece.first + r) / groups;
    return (token * heads.queries + piece.kv_head * groups + (piece.first + r) % groups) * dim;
  };
  for (int r = 0; r < R; r++) Cached<X, T>::arrange(query + place(r), dim, rows + r * dim);
  const int64_t from = piece.kv_head * heads.head_stride + piece.segment[0] * dim;
  for (int64_t j = 0; j < padded; j += kLanes)
    score_block<X, R>(rows, keys + from, j, visible, dim, heads.scale, scores, padded);
  float totals[R];
  for (int r = 0; r < R; r++) {
    totals[r] = weigh_scores(scores + r * padded, past + (piece.first + r) / groups + 1, padded);
    for (int64_t j = 0; j < padded; j += kLanes)
      Arithmetic<X>::round(load(scores + r * padded + j), weights + r * stride + j / Arithmetic<X>::kInputs);
  }
  weigh_values<X, R>(weights, stride, values + from, visible, dim, sums);
  for (int r = 0; r < R; r++) {
    Cached<X, T>::restore(sums + r * dim, dim, row);
    for (int64_t c = 0; c < dim; c += kLanes) store(out + place(r) + c, load(row + c) / totals[r]);
  }
}

// The pieces of a step's segments [M, 4], those of one key-value head behind each other, so that they share its keys.
inline std::vector<Piece> cut_into_pieces(const Heads& heads, const int64_t* segments, int64_t num_segments) {
  std::vector<Piece> pieces;
  const int64_t groups = heads.queries / heads.kv, most = std::max<int64_t>(1, kMaxRows / groups) * groups;
  const int64_t step = std::min<int64_t>(most, kMaxRows);
  for (const int64_t* segment = segments; segment < segments + 4 * num_segments; segment += 4) {
    const int64_t rows = (segment[3] - segment[2]) * groups;
    for (int64_t head = 0; head < heads.kv; head++)
      for (int64_t first = 0; first < rows; first += step)
        pieces.push_back({segment, head, first, std::min(step, rows - first)});
  }
  return pieces;
}

template <typename X, typename T, typename Out, int... R>
auto choose_piece(int64_t rows, std::integer_sequence<int, R...>) {
  static constexpr decltype(&attend_piece<X, 1, T, Out>) functions[] = {attend_piece<X, R + 1, T, Out>...};
  return functions[rows - 1];
}

// `out` [T, N D]; products in the arithmetic of X.
template <typename X, typename T, typename Out>
void attend(Team& team, const Heads& heads, const std::vector<Piece>& pieces, const float* query, const T* keys,
            const T* values, Out* out, std::vector<float>& room) {
  team.share((int64_t)pieces.size(), 1, [&](int64_t index) {
    const Piece& piece = pieces[index];
    choose_piece<X, T, Out>(piece.count, std::make_integer_sequence<int, kMaxRows>())(heads, piece, query, keys, values,
                                                                                      out, room);
  });
}
