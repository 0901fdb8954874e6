// Emulation on the CPU of the CUDA kernels that batch_norm.cpp calls, for tests without a GPU. libtorch's dispatcher
// registers them under the kernels' names, and rejects a wrong signature. Only tests call and link this.
//
// Formulas from aten/src/ATen/native/cuda/Normalization.cuh; results differ by rounding.

#include "shim.hpp"

#include <cmath>
#include <optional>
#include <tuple>

#include <ATen/ATen.h>
#include <torch/library.h>

using at::Tensor;
using Maybe = std::optional<Tensor>;

namespace {

Tensor by_channel(const Tensor& values) {
  return values.view({1, -1, 1, 1});
}

Tensor sum_by_channel(const Tensor& values) {
  return values.sum({0, 2, 3}, false, at::kFloat);
}

std::tuple<Tensor, Tensor> stats(const Tensor& input, double eps) {
  const Tensor x = input.to(at::kFloat);
  const Tensor mean = x.mean({0, 2, 3});
  return {mean, ((x - by_channel(mean)).square().mean({0, 2, 3}) + eps).rsqrt()};
}

// Adds up rank after rank with an integer count, as the kernel does.
std::tuple<Tensor, Tensor> gather_stats(
    const Tensor&, const Tensor& means, const Tensor& invstds, const Maybe& running_mean, const Maybe& running_var,
    double momentum, double eps, const Tensor& counts) {
  TORCH_CHECK(means.scalar_type() == at::kFloat && counts.scalar_type() == at::kFloat, "statistics in f32");
  Tensor mean = at::zeros_like(means[0]), squares = at::zeros_like(means[0]);
  int32_t n = 0;
  for (int64_t rank = 0; rank < means.size(0); rank++) {
    const float count = counts[rank].item<float>(), factor = 1.0f / (static_cast<float>(n) + count);
    const Tensor of_rank = (invstds[rank].reciprocal().square() - eps) * count;
    squares += of_rank + (mean - means[rank]).square() * (static_cast<float>(n) * count * factor);
    mean = mean * (static_cast<float>(n) * factor) + means[rank] * (count * factor);
    n = static_cast<int32_t>(static_cast<float>(n) + count);
  }
  running_mean->mul_(1 - momentum).add_(mean, momentum);
  running_var->mul_(1 - momentum).add_(squares / static_cast<float>(n - 1), momentum);
  return {mean, (squares / static_cast<float>(n) + eps).rsqrt()};
}

Tensor elemt(
    const Tensor& input, const Maybe& weight, const Maybe& bias, const Tensor& mean, const Tensor& invstd, double) {
  const Tensor normalised = (input.to(at::kFloat) - by_channel(mean)) * by_channel(invstd);
  return (normalised * by_channel(*weight) + by_channel(*bias)).to(input.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_reduce(
    const Tensor& gradient, const Tensor& input, const Tensor& mean, const Tensor& invstd, const Maybe&, bool, bool,
    bool) {
  const Tensor dy = gradient.to(at::kFloat);
  const Tensor sum_dy = sum_by_channel(dy), sum_dy_xmu = sum_by_channel(dy * (input.to(at::kFloat) - by_channel(mean)));
  return {sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy.clone()};
}

Tensor backward_elemt(
    const Tensor& gradient, const Tensor& input, const Tensor& mean, const Tensor& invstd, const Maybe& weight,
    const Tensor& sum_dy, const Tensor& sum_dy_xmu, const Tensor& counts) {
  TORCH_CHECK(counts.scalar_type() == at::kInt && counts.is_contiguous(), "counts are read as integers in a row");
  const double all = counts.sum().item<double>();
  const Tensor along = by_channel(sum_dy_xmu / all * invstd.square());
  const Tensor away = gradient.to(at::kFloat) - by_channel(sum_dy / all) -
      (input.to(at::kFloat) - by_channel(mean)) * along;
  return (away * by_channel(*weight * invstd)).to(input.scalar_type());
}

} // namespace

extern "C" int32_t dist_emulate_kernels() {
  return shim::guarded([] {
    static torch::Library* const library = [] {
      auto* all = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__);
      all->impl("batch_norm_stats", TORCH_FN(stats));
      all->impl("batch_norm_gather_stats_with_counts", TORCH_FN(gather_stats));
      all->impl("batch_norm_elemt", TORCH_FN(elemt));
      all->impl("batch_norm_backward_reduce", TORCH_FN(backward_reduce));
      all->impl("batch_norm_backward_elemt", TORCH_FN(backward_elemt));
      return all;
    }();
    (void)library;
  });
}
