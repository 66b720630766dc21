// Vectors of floats in the width of the processor, and what the standard library has no vector form of.
//
// GCC/Clang vector extensions: one source gives AVX2, AVX-512 or NEON code with -march=native. Arithmetic is float32
// throughout; in memory there is float or bfloat16.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));
typedef float Two __attribute__((vector_size(8)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

struct BFloat16 {
  uint16_t bits;
};

// `value - 0` is exactly `value`, signed zeros included, so compilers make it one broadcast.
inline Floats splat(float value) { return value - Floats{}; }

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Floats load(const BFloat16* from) {
  Halves bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

// Two vectors' worth of neighbours. bfloat16 comes as the even ones and the odd ones, since a shift and a mask then do
// what takes several shuffles in the order of memory; `arrange` and `restore` bring other vectors into that order and
// back.
inline void load_pair(const float* from, Floats& first, Floats& second) {
  first = load(from);
  second = load(from + kLanes);
}

inline void load_pair(const BFloat16* from, Floats& first, Floats& second) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  first = (Floats)(words << 16);
  second = (Floats)(words & 0xffff0000u);
}

template <typename T>
inline void arrange(const float* from, int64_t size, float* to) {
  for (int64_t i = 0; i < size; i += 2 * kLanes)
    for (int lane = 0; lane < kLanes; lane++) {
      const bool is_split = sizeof(T) == 2;
      to[i + lane] = from[i + (is_split ? 2 * lane : lane)];
      to[i + kLanes + lane] = from[i + (is_split ? 2 * lane + 1 : kLanes + lane)];
    }
}

template <typename T>
inline void restore(const float* from, int64_t size, float* to) {
  for (int64_t i = 0; i < size; i += 2 * kLanes)
    for (int lane = 0; lane < kLanes; lane++) {
      const bool is_split = sizeof(T) == 2;
      to[i + (is_split ? 2 * lane : lane)] = from[i + lane];
      to[i + (is_split ? 2 * lane + 1 : kLanes + lane)] = from[i + kLanes + lane];
    }
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

// Rounds to nearest, ties to even, as torch does.
inline void store(BFloat16* to, Floats value) {
  Words bits = (Words)value;
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  Halves halves = __builtin_convertvector(bits, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

// The sum of a vector's two halves.
template <typename Half, typename Whole>
inline Half fold(Whole value) {
  Half low, high;
  std::memcpy(&low, &value, sizeof low);
  std::memcpy(&high, (const char*)&value + sizeof low, sizeof high);
  return low + high;
}

inline float sum(Floats value) {
#if defined(__AVX512F__)
  const Eight eight = fold<Eight>(value);
#else
  const Eight eight = value;
#endif
  const Two two = fold<Two>(fold<Four>(eight));
  return two[0] + two[1];
}

// exp(x), with x held to [-87, 88] where float32 has normal numbers; relative error below 2e-7. Range reduction by ln 2
// in two parts and the Taylor polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2] (W. J. Cody and W. Waite, Software Manual
// for the Elementary Functions, 1980).
inline Floats exponential(Floats x) {
  const Floats lowest = splat(-87.0f), highest = splat(88.0f);
  x = x > lowest ? x : lowest;
  x = x < highest ? x : highest;
  const Floats shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Floats scaled = x * 1.44269504088896341f + shifter;
  Ints exponent = (Ints)scaled - 0x4b400000;
  Floats n = scaled - shifter;
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = splat(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return (Floats)((Ints)p + (exponent << 23));
}
