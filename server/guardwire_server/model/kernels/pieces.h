// What a thread takes of a step's attention at a time.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "norms.h"

constexpr int kNarrowRows = 6;           // at most, in a narrow piece (attention.h)
constexpr int kWideRows = 2 * kLanes;    // in a wide one (wide_attention.h)
constexpr int kFewestWideRows = kLanes;  // fewer are faster in narrow pieces

// The rows `first` to `first` + count - 1 of a segment, for one key-value head. Row f is query head f % G, of that
// key-value head, of the segment's token f / G.
struct Piece {
  const int64_t* segment;  // first slot, cached tokens, first row and one past the last row of the batch
  int64_t kv_head, first, count;

  // The last key that a row of the piece sees.
  int64_t last_key(const Heads& heads, int64_t row) const {
    return segment[1] + (first + row) / (heads.queries / heads.kv);
  }
  // Where a row lies in the queries [T, N, D], and in what comes of them.
  int64_t place(const Heads& heads, int64_t row) const {
    const int64_t groups = heads.queries / heads.kv, token = segment[2] + (first + row) / groups;
    return (token * heads.queries + kv_head * groups + (first + row) % groups) * heads.dim;
  }
  // Where its keys and values begin in a layer of the cache.
  int64_t extent(const Heads& heads) const { return kv_head * heads.head_stride + segment[0] * heads.dim; }
};

// The pieces of a step's segments [M, 4], those of one key-value head behind each other, so that they share its keys.
inline std::vector<Piece> cut_into_pieces(const Heads& heads, const int64_t* segments, int64_t num_segments,
                                          bool has_wide) {
  std::vector<Piece> pieces;
  const int64_t groups = heads.queries / heads.kv;
  const int64_t narrow = std::min<int64_t>(kNarrowRows, std::max<int64_t>(1, kNarrowRows / groups) * groups);
  for (const int64_t* segment = segments; segment < segments + 4 * num_segments; segment += 4) {
    const int64_t rows = (segment[3] - segment[2]) * groups;
    for (int64_t head = 0; head < heads.kv; head++)
      for (int64_t first = 0, count; first < rows; first += count) {
        const int64_t most = has_wide && rows - first >= kFewestWideRows ? kWideRows : narrow;
        count = std::min(most, rows - first);
        pieces.push_back({segment, head, first, count});
      }
  }
  return pieces;
}
