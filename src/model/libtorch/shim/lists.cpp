// Operators over lists of tensors: a few launches on a GPU for any number of tensors.

#include "shim.hpp"

#include <optional>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

using model_shim::guarded;

namespace {

std::vector<at::Tensor> list(const at::Tensor* const* tensors, size_t count) {
  std::vector<at::Tensor> all;
  all.reserve(count);
  for (size_t i = 0; i < count; i++) {
    all.push_back(*tensors[i]);
  }
  return all;
}

std::vector<at::Tensor> gradients(const std::vector<at::Tensor>& parameters) {
  std::vector<at::Tensor> all;
  all.reserve(parameters.size());
  for (const at::Tensor& parameter : parameters) {
    TORCH_CHECK(parameter.grad().defined(), "a parameter has no gradient");
    all.push_back(parameter.grad());
  }
  return all;
}

std::optional<at::Tensor> maybe(const at::Tensor* tensor) {
  return tensor == nullptr ? std::nullopt : std::optional<at::Tensor>(*tensor);
}

} // namespace

extern "C" {

int32_t model_drop_gradients(const at::Tensor* const* parameters, size_t count) {
  return guarded([&] {
    for (size_t i = 0; i < count; i++) {
      parameters[i]->mutable_grad().reset();
    }
  });
}

int32_t model_set_gradients(const at::Tensor* const* parameters, const at::Tensor* const* gradients, size_t count) {
  return guarded([&] {
    for (size_t i = 0; i < count; i++) {
      parameters[i]->mutable_grad() = *gradients[i];
    }
  });
}

// Returns the norm of all gradients together, a f64 scalar; null without gradients.
int32_t model_gradient_norm(const at::Tensor* const* parameters, size_t count, at::Tensor** norm) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> all;
    for (size_t i = 0; i < count; i++) {
      if (parameters[i]->grad().defined()) {
        all.push_back(parameters[i]->grad());
      }
    }
    if (all.empty()) {
      *norm = nullptr;
      return;
    }
    *norm = new at::Tensor(at::linalg_vector_norm(
        at::stack(at::_foreach_norm(all)), 2, std::nullopt, false, at::kDouble));
  });
}

// `scale`: the divisor of the gradients, a f32 scalar on their device, or null.
int32_t model_fused_sgd(
    const at::Tensor* const* parameters,
    const at::Tensor* const* buffers,
    size_t count,
    double rate,
    double momentum,
    int32_t nesterov,
    double weight_decay,
    const at::Tensor* scale) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const auto all = list(parameters, count);
    const auto kept = list(buffers, momentum == 0 ? 0 : count);
    at::_fused_sgd_(
        all, gradients(all), kept, weight_decay, momentum, rate, /*dampening=*/0, nesterov != 0,
        /*maximize=*/false, /*is_first_step=*/false, maybe(scale));
  });
}

// `step`: the number of the step, from 1, as a f32 scalar on their device.
int32_t model_fused_adamw(
    const at::Tensor* const* parameters,
    const at::Tensor* const* means,
    const at::Tensor* const* squares,
    size_t count,
    const at::Tensor* step,
    double rate,
    double beta1,
    double beta2,
    double weight_decay,
    double eps,
    const at::Tensor* scale) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const auto all = list(parameters, count);
    at::_fused_adamw_(
        all, gradients(all), list(means, count), list(squares, count), /*max_exp_avg_sqs=*/{},
        std::vector<at::Tensor>(count, *step), rate, beta1, beta2, weight_decay, eps, /*amsgrad=*/false,
        /*maximize=*/false, maybe(scale));
  });
}

// Updates of layer-wise adaptive rates; see `lars` in mod.rs. Overwrites the gradients.
int32_t model_lars(
    const at::Tensor* const* parameters,
    const at::Tensor* const* buffers,
    size_t count,
    double rate,
    double momentum,
    double weight_decay,
    double trust,
    const at::Tensor* scale) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    const auto all = list(parameters, count);
    const auto kept = list(buffers, count);
    const auto updates = gradients(all);
    if (scale != nullptr) {
      at::_foreach_div_(updates, *scale);
    }
    at::_foreach_add_(updates, all, weight_decay);
    if (trust > 0) {
      const at::Tensor weight = at::stack(at::_foreach_norm(all));
      const at::Tensor gradient = at::stack(at::_foreach_norm(updates));
      const at::Tensor both = weight.gt(0).logical_and(gradient.gt(0));
      const auto ratios = at::where(both, at::div(at::mul(weight, trust), gradient), at::ones_like(weight)).unbind(0);
      at::_foreach_mul_(updates, ratios);
    }
    at::_foreach_mul_(kept, momentum);
    at::_foreach_add_(kept, updates);
    at::_foreach_add_(all, kept, -rate);
  });
}

} // extern "C"
