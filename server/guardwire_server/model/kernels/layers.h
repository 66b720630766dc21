// All decoder layers of a Qwen3 step, by one team of threads.

#pragma once

#include <vector>

#include "attention.h"
#include "linear.h"
#include "norms.h"
#include "team.h"

// One layer's weights; the fields are pointers only, in the order of native_layers.py.
struct Layer {
  const uint32_t *qkv, *attention_output, *gate_up, *mlp_output;
  const float *input_norm, *query_norm, *key_norm, *output_norm;
};

struct Shape {
  int64_t num_layers, hidden, intermediate, layer_stride;  // layer_stride: elements between two layers of the cache
  Heads heads;
};

// The tokens of a step.
struct Batch {
  int64_t rows, num_segments;
  const int64_t *slots, *segments;
  const float *cosines, *sines;  // [T, D / 2]
};

// Floats that a step of so many rows needs for its intermediate results.
inline int64_t room_for(const Shape& shape, int64_t rows) {
  const int64_t query = shape.heads.queries * shape.heads.dim, kv = shape.heads.kv * shape.heads.dim;
  const int64_t widest = std::max({shape.hidden, query, shape.intermediate});
  return rows * (widest + (query + 2 * kv) + 2 * query + shape.intermediate);
}

// x [T, H] becomes the hidden states after the last layer, before the final norm. Products in the arithmetic of X.
template <typename X, typename T>
void run_layers(const Layer* layers, const Shape& shape, const Batch& batch, float* x, T* keys, T* values, float* room,
                int threads) {
  const Heads& heads = shape.heads;
  const int64_t query_width = heads.queries * heads.dim, width = query_width + 2 * heads.kv * heads.dim;
  const Tiles tiles(batch.rows);
  const std::vector<Piece> pieces = cut_into_pieces(heads, batch.segments, batch.num_segments, has_wide<X, T>());
  const auto interleaved = (typename Arithmetic<X>::Factor*)room;
  float *const qkv = room + batch.rows * std::max({shape.hidden, query_width, shape.intermediate}),
               *const query = qkv + batch.rows * width, *const attended = query + batch.rows * query_width,
               *const gated = attended + batch.rows * query_width;
  Team::run(threads, [&](Team& team) {
    std::vector<float> scores;
    const auto normalised = [&](const float* weight) {
      interleave<X>(
          team, tiles, x, shape.hidden, [&](const float* row) { return inverse_rms(row, shape.hidden, heads.eps); },
          [weight](int64_t i) { return load(weight + i); }, interleaved);
    };
    for (int64_t index = 0; index < shape.num_layers; index++) {
      const Layer& layer = layers[index];
      T* const layer_keys = keys + index * shape.layer_stride;
      T* const layer_values = values + index * shape.layer_stride;
      normalised(layer.input_norm);
      multiply_panels<X>(team, layer.qkv, interleaved, tiles, shape.hidden, width, Epilogue::kStore, qkv);
      team.share(batch.rows, 1, [&](int64_t row) {
        const int64_t angle = row * heads.dim / 2;
        prepare_token(heads, qkv + row * width, layer.query_norm, layer.key_norm, batch.cosines + angle,
                      batch.sines + angle, batch.slots[row], query + row * query_width, layer_keys, layer_values);
      });
      attend<X>(team, heads, pieces, query, layer_keys, layer_values, attended, scores);
      interleave<X>(team, tiles, attended, query_width, interleaved);
      multiply_panels<X>(team, layer.attention_output, interleaved, tiles, query_width, shape.hidden, Epilogue::kAdd,
                         x);
      normalised(layer.output_norm);
      multiply_panels<X>(team, layer.gate_up, interleaved, tiles, shape.hidden, shape.intermediate, Epilogue::kGate,
                         gated);
      interleave<X>(team, tiles, gated, shape.intermediate, interleaved);
      multiply_panels<X>(team, layer.mlp_output, interleaved, tiles, shape.intermediate, shape.hidden, Epilogue::kAdd,
                         x);
    }
  });
}
