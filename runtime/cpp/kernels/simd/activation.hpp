// Activations of vectors of floats, within 1e-6 of the exact value (relative, or absolute below 1).
#pragma once

#include <cstddef>

#include "../types.hpp"

namespace adexport::kernels {

template <class V>
struct ActivationOf {
  using Register = typename V::Register;
#define ADEXPORT_INLINE static inline __attribute__((always_inline))

  // exp(x) as power * (1 + rest), for x <= 0; -87 and less are as good as nothing
  struct Exp {
    Register power, rest;
  };
  ADEXPORT_INLINE Exp exp(Register x) {
    x = V::max(V::set(-87.0F), x);
    const Register magic = V::set(0x1.8p23F);
    const Register shifted = V::fma(x, V::set(0x1.715476p+0F), magic);  // 1 / ln 2
    const Register n = V::sub(shifted, magic);
    // ln 2 in two parts, so that what is left is exact
    const Register r = V::fma(n, V::set(0x1.05c610p-29F), V::fma(n, V::set(-0x1.62e430p-1F), x));
    Register p = V::set(1.0F / 5040);
    p = V::fma(p, r, V::set(1.0F / 720));
    p = V::fma(p, r, V::set(1.0F / 120));
    p = V::fma(p, r, V::set(1.0F / 24));
    p = V::fma(p, r, V::set(1.0F / 6));
    p = V::fma(p, r, V::set(0.5F));
    return {V::power(shifted), V::fma(V::mul(p, r), r, r)};
  }

  ADEXPORT_INLINE Register negated(Register x) {
    return V::sub(V::zero(), x);
  }
  ADEXPORT_INLINE Register full(Exp e) {
    return V::fma(e.power, e.rest, e.power);
  }

  ADEXPORT_INLINE Register relu(Register x) {
    return V::max(V::zero(), x);
  }

  // x / (1 + exp(-u)), by exp of what is not positive
  ADEXPORT_INLINE Register times_sigmoid(Register x, Register u) {
    const Register e = full(exp(negated(V::abs(u))));
    const Register one = V::set(1.0F);
    return V::div(V::mul(x, V::by_sign(u, e, one)), V::add(one, e));
  }
  ADEXPORT_INLINE Register silu(Register x) {
    return times_sigmoid(x, x);
  }

  // 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), of which 0.5 (1 + tanh(u)) is the sigmoid of 2 u
  ADEXPORT_INLINE Register gelu_new(Register x) {
    const Register cubic = V::fma(V::mul(x, x), V::set(0.0713548162726F), V::set(1.59576912161F));
    return times_sigmoid(x, V::mul(x, cubic));
  }

  // by expm1(-2 |x|), which keeps small values exact
  ADEXPORT_INLINE Register tanh(Register x) {
    const Register size = V::abs(x);
    const Exp e = exp(V::mul(V::set(-2.0F), size));
    const Register less = V::fma(e.power, e.rest, V::sub(e.power, V::set(1.0F)));
    const Register result = V::div(negated(less), V::add(V::set(2.0F), less));
    return V::by_sign(x, negated(result), result);
  }

  // max(x, 0) - 0.5 |x| erfc(|x| / sqrt(2)), where erfc(z) exp(z^2) is a polynomial in 1 / (1 + |x| / 4)
  // that was fitted to it (relative error 8e-9)
  ADEXPORT_INLINE Register gelu(Register x) {
    const Register size = V::abs(x);
    const Register t = V::div(V::set(1.0F), V::fma(size, V::set(0.25F), V::set(1.0F)));
    Register p = V::set(0.03258134052157402F);
    p = V::fma(p, t, V::set(-0.12234574556350708F));
    p = V::fma(p, t, V::set(0.09542156755924225F));
    p = V::fma(p, t, V::set(0.06779397279024124F));
    p = V::fma(p, t, V::set(0.01594703644514084F));
    p = V::fma(p, t, V::set(0.1786442995071411F));
    p = V::fma(p, t, V::set(0.14205823838710785F));
    p = V::fma(p, t, V::set(0.19147168099880219F));
    p = V::fma(p, t, V::set(0.19892871379852295F));
    p = V::fma(p, t, V::set(0.19949890673160553F));
    const Register e = full(exp(V::mul(V::mul(V::set(-0.5F), size), size)));
    const Register less = V::mul(V::mul(V::mul(V::set(0.5F), size), V::mul(t, p)), e);
    return V::sub(relu(x), less);
  }
#undef ADEXPORT_INLINE
};

template <class V, class Function>
inline __attribute__((always_inline)) void each(float* values, std::size_t count, const Function& function) {
  constexpr std::size_t width = V::width;
  std::size_t i = 0;
  for (; count - i >= width; i += width) V::store(values + i, function(V::load(values + i)));
  if (i < count) V::store(values + i, function(V::load(values + i, count - i)), count - i);
}

template <class V>
void activate(Activation activation, float* values, std::size_t count) {
  using Of = ActivationOf<V>;
  using Register = typename V::Register;
  switch (activation) {
    case Activation::linear:
      break;
    case Activation::relu:
      each<V>(
          values, count, [](Register x) __attribute__((always_inline)) { return Of::relu(x); });
      break;
    case Activation::gelu:
      each<V>(
          values, count, [](Register x) __attribute__((always_inline)) { return Of::gelu(x); });
      break;
    case Activation::gelu_new:
      each<V>(
          values, count, [](Register x) __attribute__((always_inline)) { return Of::gelu_new(x); });
      break;
    case Activation::silu:
      each<V>(
          values, count, [](Register x) __attribute__((always_inline)) { return Of::silu(x); });
      break;
    case Activation::tanh:
      each<V>(
          values, count, [](Register x) __attribute__((always_inline)) { return Of::tanh(x); });
      break;
  }
}

}  // namespace adexport::kernels
