// PyTorch's activations that are made of the other functions, but sigmoid and tanh (vec.h), relu and hardtanh (rounding.h).
#pragma once

#include "error_function.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> silu(const Vectors<T, Count>& x) {
  return x / (T(1) + exp<T>(neg<T>(x)));
}

// log(1 + exp(x))
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> log1p_exp(const Vectors<T, Count>& x) {
  return at_least<T>(x, T(0)) + log1p<T>(exp<T>(neg<T>(absolute<T>(x))));
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> log_sigmoid(const Vectors<T, Count>& x) {
  return at_most<T>(x, T(0)) - log1p<T>(exp<T>(neg<T>(absolute<T>(x))));
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> softplus(const Vectors<T, Count>& x, T beta, T threshold) {
  const auto scaled = x * beta;
  return where<T>(gt<T>(scaled, threshold), x, log1p_exp<T>(scaled) / beta);
}

// x tanh(log(1 + exp(x))). With e = exp(-|x|) the factor is 1 - 2 e^2 / (1 + 2 e (1 + e)) for positive x and e - e^2 (1 + e) / (2 + e (2 +
// e)) for negative x: small corrections, whose errors count little.
template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> mish(const Vectors<T, Count>& x) {
  const auto negative = lt<T>(x, T(0));
  const auto e = exp<T>(neg<T>(absolute<T>(x)));
  const auto more = e + T(1);
  const auto below = where<T>(negative, e * (e + T(2)) + T(2), e * more * T(2) + T(1));
  const auto correction = e * where<T>(negative, more, T(2)) / below;
  return x * (where<T>(negative, e, T(1)) - e * correction);
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> hardsigmoid(const Vectors<T, Count>& x) {
  return clamp<T>(x + T(3), T(0), T(6)) / T(6);
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> hardswish(const Vectors<T, Count>& x) {
  return x * clamp<T>(x + T(3), T(0), T(6)) / T(6);
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> gelu(const Vectors<T, Count>& x) {
  return x * T(0.5) * (T(1) + erf<T>(x * T(0.70710678118654752440)));
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> gelu_tanh(const Vectors<T, Count>& x) {
  const auto inner = (x + x * x * x * T(0.044715)) * T(0.79788456080286535588);
  return x * T(0.5) * (T(1) + tanh<T>(inner));
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> elu(const Vectors<T, Count>& x, T alpha, T scale, T input_scale) {
  return where<T>(ge<T>(x, T(0)), x * scale, expm1<T>(x * input_scale) * (alpha * scale));
}

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> leaky_relu(const Vectors<T, Count>& x, T slope) {
  return x * where<T>(gt<T>(x, T(0)), T(1), spread<T, Count>(slope));
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
