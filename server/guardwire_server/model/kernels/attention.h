// Attention of a ragged batch over the cache: every sequence's keys and values lie in one contiguous extent.
//
// The query heads of one key-value head, of one new token or of several neighbours, are rows that read the same keys;
// up to kMaxRows of them do so together.

#pragma once

#include <algorithm>
#include <vector>

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

// Scores of R rows with kKeys keys; `query` [R][D] is arranged.
template <int R, int kKeys, typename T>
inline void score_some(const float* query, const T* keys, int64_t dim, float scale, float* scores, int64_t stride) {
  constexpr int kBytes = kKeys * 2 * kLanes * (int)sizeof(T);
  const char* ahead = (const char*)(keys + kAhead * dim);
  Floats sums[kKeys][R];
  for (int k = 0; k < kKeys; k++)
    for (int r = 0; r < R; r++) sums[k][r] = splat(0);
  for (int64_t c = 0; c < dim; c += 2 * kLanes, ahead += kBytes) {
    fetch<kBytes>(ahead);
#pragma GCC unroll 8
    for (int k = 0; k < kKeys; k++) {
      Floats first, second;
      load_pair(keys + k * dim + c, first, second);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        sums[k][r] += first * load(query + r * dim + c);
        sums[k][r] += second * load(query + r * dim + c + kLanes);
      }
    }
  }
  for (int k = 0; k < kKeys; k++)
    for (int r = 0; r < R; r++) scores[r * stride + k] = sum(sums[k][r]) * scale;
}

template <int R, typename T>
inline void score_keys(const float* query, const T* keys, int64_t count, int64_t dim, float scale,
                       float* scores, int64_t stride) {
  constexpr int kKeys = R <= 2 ? 4 : 2;  // as many sums as registers hold
  int64_t j = 0;
  for (; j + kKeys <= count; j += kKeys)
    score_some<R, kKeys>(query, keys + j * dim, dim, scale, scores + j, stride);
  for (; j < count; j++) score_some<R, 1>(query, keys + j * dim, dim, scale, scores + j, stride);
}

// Turns the first `count` scores into weights that add up to 1; the rest of `padded`, a whole number of vectors, weighs
// nothing.
inline void softmax(float* scores, int64_t count, int64_t padded) {
  std::fill(scores + count, scores + padded, -INFINITY);
  Floats highest = load(scores);
  for (int64_t j = kLanes; j < padded; j += kLanes) {
    const Floats value = load(scores + j);
    highest = value > highest ? value : highest;
  }
  float top = highest[0];
  for (int lane = 1; lane < kLanes; lane++) top = std::max(top, highest[lane]);
  Floats total = splat(0);
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Floats value = exponential(load(scores + j) - top);
    store(scores + j, value);
    total += value;
  }
  // Padding adds exp(-87) at most, which float32 cannot see beside the 1 of the highest score.
  const float inverse = 1.0f / sum(total);
  for (int64_t j = 0; j < padded; j += kLanes) store(scores + j, load(scores + j) * inverse);
  std::fill(scores + count, scores + padded, 0.0f);
}

// Adds the weighted values of `count` keys to `sums` [R][D], kPairs pairs of vectors of the head dimension, whose sums
// stay in registers. As many bytes are fetched from `ahead` on as are read.
template <int R, int kPairs, typename T>
inline void weigh_part(const float* weights, int64_t stride, const T* values, int64_t count, int64_t dim,
                       const char* ahead, float* sums) {
  constexpr int kBytes = kPairs * 2 * kLanes * (int)sizeof(T);
  Floats part[R][2 * kPairs];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < 2 * kPairs; p++) part[r][p] = load(sums + r * dim + p * kLanes);
  for (int64_t j = 0; j < count; j++, ahead += kBytes) {
    fetch<kBytes>(ahead);
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; p++) {
      Floats first, second;
      load_pair(values + j * dim + 2 * p * kLanes, first, second);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const Floats weight = splat(weights[r * stride + j]);
        part[r][2 * p] += weight * first;
        part[r][2 * p + 1] += weight * second;
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int p = 0; p < 2 * kPairs; p++) store(sums + r * dim + p * kLanes, part[r][p]);
}

// Weighted sums of `count` keys' values, arranged.
template <int R, typename T>
inline void weigh_values(const float* weights, int64_t stride, const T* values, int64_t count, int64_t dim,
                         float* sums) {
  constexpr int kPairs = R <= 2 ? 2 : 1;
  constexpr int64_t kBlock = 32;  // keys whose values stay in the first-level cache for the next part
  std::fill(sums, sums + R * dim, 0.0f);
  for (int64_t j = 0; j < count; j += kBlock) {
    const int64_t some = std::min(kBlock, count - j);
    const T *block = values + j * dim, *ahead = block + kAhead * dim;
    int64_t c = 0;
    for (; c + 2 * kPairs * kLanes <= dim; c += 2 * kPairs * kLanes)
      weigh_part<R, kPairs>(weights + j, stride, block + c, some, dim, (const char*)(ahead + c * some), sums + c);
    for (; c < dim; c += 2 * kLanes)
      weigh_part<R, 1>(weights + j, stride, block + c, some, dim, (const char*)(ahead + c * some), sums + c);
  }
}

// A piece of attention: the rows `first` to `first + count` - 1 of a segment, for one key-value head. Row f is query
// head f % G, of that key-value head, of the segment's token f / G.
struct Piece {
  const int64_t* segment;  // first slot, cached tokens, first row and one past the last row of the batch
  int64_t kv_head, first, count;
};

template <int R, typename T, typename X>
void attend_piece(const Heads& heads, const Piece& piece, const float* query, const T* keys, const T* values, X* out,
                  std::vector<float>& room) {
  const int64_t groups = heads.queries / heads.kv, dim = heads.dim, past = piece.segment[1];
  const int64_t visible = past + (piece.first + R - 1) / groups + 1;  // keys that the last row sees
  const int64_t padded = (visible + kLanes - 1) / kLanes * kLanes;
  if ((int64_t)room.size() < R * (padded + 2 * dim)) room.resize(R * (padded + 2 * dim));
  float *const scores = room.data(), *const sums = scores + R * padded, *const rows = sums + R * dim;
  int64_t places[R];
  for (int r = 0; r < R; r++) {
    const int64_t token = piece.segment[2] + (piece.first + r) / groups;
    places[r] = (token * heads.queries + piece.kv_head * groups + (piece.first + r) % groups) * dim;
    arrange<T>(query + places[r], dim, rows + r * dim);
  }
  const int64_t from = piece.kv_head * heads.head_stride + piece.segment[0] * dim;
  score_keys<R>(rows, keys + from, visible, dim, heads.scale, scores, padded);
  for (int r = 0; r < R; r++) softmax(scores + r * padded, past + (piece.first + r) / groups + 1, padded);
  weigh_values<R>(scores, padded, values + from, visible, dim, sums);
  for (int r = 0; r < R; r++) {
    restore<T>(sums + r * dim, dim, rows + r * dim);
    for (int64_t c = 0; c < dim; c += kLanes) store(out + places[r] + c, load(rows + r * dim + c));
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

template <typename T, typename X>
void attend(Team& team, const Heads& heads, const std::vector<Piece>& pieces, const float* query, const T* keys,
            const T* values, X* out, std::vector<float>& room) {
  team.share((int64_t)pieces.size(), 1, [&](int64_t index) {
    const Piece& piece = pieces[index];
    switch (piece.count) {
      case 1: return attend_piece<1>(heads, piece, query, keys, values, out, room);
      case 2: return attend_piece<2>(heads, piece, query, keys, values, out, room);
      case 3: return attend_piece<3>(heads, piece, query, keys, values, out, room);
      case 4: return attend_piece<4>(heads, piece, query, keys, values, out, room);
      case 5: return attend_piece<5>(heads, piece, query, keys, values, out, room);
      default: return attend_piece<6>(heads, piece, query, keys, values, out, room);
    }
  });
}
