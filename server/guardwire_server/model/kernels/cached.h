// How attention reads keys and values: in which type they lie in the cache (T), and in which arithmetic they are
// multiplied (X, see linear.h).

#pragma once

#include "linear.h"
#include "vectors.h"

// Two vectors' worth of the head dimension at a time. `arrange` brings a query into the order in which keys are read,
// `restore` brings sums of values back from the order in which those are.
template <typename X, typename T>
struct Cached {
  typedef float Query;
  struct Key {
    Floats first, second;
  };

  static Key read_key(const T* from) {
    Key key;
    load_pair(from, key.first, key.second);
    return key;
  }
  static Floats add(Floats sum, const Key& key, const Query* query) {
    sum += key.first * load(query);
    return sum + key.second * load(query + kLanes);
  }
  static void read_values(const T* from, const T*, Floats& first, Floats& second) { load_pair(from, first, second); }

  static void arrange(const float* from, int64_t dim, Query* to) {
    for (int64_t i = 0; i < dim; i += 2 * kLanes)
      for (int lane = 0; lane < kLanes; lane++) {
        to[i + lane] = from[i + place(0, lane)];
        to[i + kLanes + lane] = from[i + place(1, lane)];
      }
  }
  static void restore(const float* from, int64_t dim, float* to) {
    for (int64_t i = 0; i < dim; i += 2 * kLanes)
      for (int lane = 0; lane < kLanes; lane++) {
        to[i + place(0, lane)] = from[i + lane];
        to[i + place(1, lane)] = from[i + kLanes + lane];
      }
  }

 private:
  // Where a lane of the first or the second vector lies in memory, as load_pair has it.
  static int place(int vector, int lane) { return sizeof(T) == 2 ? 2 * lane + vector : kLanes * vector + lane; }
};

// Products of pairs: a key's neighbours in the order of memory, and two keys' values side by side.
template <>
struct Cached<BFloat16, BFloat16> {
  typedef BFloat16 Query;
  typedef Words Key;

  static Key read_key(const BFloat16* from) {
    Key key;
    std::memcpy(&key, from, sizeof key);
    return key;
  }
  static Floats add(Floats sum, const Key& key, const Query* query) {
    return add_products(sum, key, read_key(query));
  }
  static void read_values(const BFloat16* from, const BFloat16* next, Words& first, Words& second) {
    const Words low = read_key(from), high = read_key(next);
    first = (low & 0xffffu) | high << 16;
    second = low >> 16 | (high & 0xffff0000u);
  }

  static void arrange(const float* from, int64_t dim, Query* to) {
    for (int64_t i = 0; i < dim; i += kLanes) store(to + i, load(from + i));
  }
  static void restore(const float* from, int64_t dim, float* to) {
    Cached<float, BFloat16>::restore(from, dim, to);
  }
};
