// The elementwise functions that a generated step calls, on Vectors<T, Count> of float and double: the pointwise operations of
// sstkern/program/language.py, by their names there and with PyTorch's semantics (NaN, infinities, the sign of zero, ties).
//
// A call names the type, f<T>(x), and Count follows from an argument. x, y are Vectors; m, n are Mask<T, Count>, which comparisons give
// and which is true or false in each lane. A number T may stand for either of two arguments that are Vectors, but not for both.
// The numbers after a bar are plain T, known at compile time or not.
//
//   in a program                       here
//   add sub mul div neg                x + y   x - y   x * y   x / y   neg<T>(x)
//   abs sign reciprocal sqrt rsqrt     the same name: abs<T>(x), ...
//   relu floor ceil round trunc        the same name
//   exp expm1 log log1p                the same name
//   sin cos tan atan                   the same name
//   sinh cosh asinh erf                the same name
//   sigmoid tanh silu mish             the same name
//   log_sigmoid hardsigmoid hardswish  the same name
//   maximum minimum atan2 pow          the same name, of two: maximum<T>(x, y); also with a number for one
//   softplus                           softplus<T>(x | beta, threshold)
//   gelu                               "none": gelu<T>(x), "tanh": gelu_tanh<T>(x)
//   elu                                elu<T>(x | alpha, scale, input_scale)
//   leaky_relu                         leaky_relu<T>(x | slope)
//   hardtanh clamp                     hardtanh<T>(x | low, high), clamp<T>(x | low, high); no bound: an infinity
//   lt le gt ge eq ne                  a mask: lt<T>(x, y), also with a number for one
//   logical_and logical_or             a mask: logical_and<T>(m, n); Vectors for either or both: true is what is not 0, a NaN too
//   logical_not                        a mask: logical_not<T>(m), logical_not<T>(x)
//   isnan                              a mask: isnan<T>(x)
//   where                              where<T>(m, x, y), also with a number for one or both; of masks too: where<T>(m, n, n)
//   cast                               of a mask to 0 and 1: numbers<T>(m); of numbers to a mask: truth<T>(x)
//   full full_like                     spread<T, Count>(number)
//
// A number as exponent is quick for -2, -1, -0.5, 0, 0.5, 1, 2 and 3, which PyTorch takes as products and roots too.
//
// The bits of a result, but a NaN's, depend on the argument's value alone: not on its lane, on Count or on its neighbours. tan, sinh,
// cosh, asinh, atan2, pow of other exponents, and sin and cos of large arguments call the C library for each lane, in double.
#pragma once

#include "functions/activations.h"
#include "functions/error_function.h"
#include "functions/exponential.h"
#include "functions/library.h"
#include "functions/logarithm.h"
#include "functions/masks.h"
#include "functions/rounding.h"
#include "functions/trigonometric.h"
