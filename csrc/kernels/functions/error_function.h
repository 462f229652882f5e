// erf.
#pragma once

#include "logarithm.h"

namespace sstkern {
namespace SSTKERN_LEVEL {

// Minimax fits. near: erf(x) / x - 1 in powers of x^2, up to 1. far: -log(1 - erf(x)) in powers of x - 1; erf is 1 from `largest` on.
template <class T>
struct Erf;

template <>
struct Erf<float> {
  static constexpr float largest = 4.0f;
  static constexpr float near[] = {0.12837916612625122f,  -0.3761262893676758f,    0.11283618211746216f,  -0.02685512602329254f,
                                   0.005190733354538679f, -0.0008030755561776459f, 7.920338975964114e-05f};
  static constexpr float far[] = {1.8496055603027344f,    2.6389620304107666f,    0.8431955575942993f,    0.04106951504945755f,
                                  -0.008822744712233543f, 0.0005512288771569729f, 0.0005268630338832736f, -0.0001483811211073771f};
};

template <>
struct Erf<double> {
  static constexpr double largest = 6.0;
  static constexpr double near[] = {0.12837916709551256,    -0.3761263890318334,     0.11283791670936548,    -0.02686617064187282,
                                    0.005223977595887491,   -0.0008548325439249543,  0.00012055279016778151, -1.492443570172453e-05,
                                    1.6443768871939659e-06, -1.6181012759559736e-07, 1.3603712700305678e-08, -7.583578813159126e-10};
  static constexpr double far[] = {1.8496055099332482,      2.638967514234783,      0.8431072563591645,     0.04156109802890959,
                                   -0.01003382521129436,    0.001977901381276774,   -0.0002373169942102063, -2.629502562056408e-05,
                                   2.719682730439836e-05,   -9.66882347947748e-06,  2.1297248131749706e-06, -2.034100133820483e-07,
                                   -5.865396771509847e-08,  3.3600335709511074e-08, -8.565420033847035e-09, 1.3257930647209493e-09,
                                   -1.1986976821137297e-10, 4.883350728116752e-12};
};

template <class T, int Count>
SSTKERN_INLINE Vectors<T, Count> erf(const Vectors<T, Count>& x) {
  const auto size = at_most<T>(absolute<T>(x), Erf<T>::largest);
  const auto near = fma<T>(size, polynomial<T>(size * size, Erf<T>::near), size);
  const auto e = scaled_exp<T>(neg<T>(polynomial<T>(size - T(1), Erf<T>::far)));
  const auto far = (T(1) - e.scale) - e.scale * e.fraction;
  return copy_sign<T>(where<T>(lt<T>(size, T(1)), near, far), x);
}

}  // namespace SSTKERN_LEVEL
}  // namespace sstkern
