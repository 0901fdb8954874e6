// Batch norm over the images of all ranks, with libtorch's CUDA kernels. Follows the order of calls of
// torch.nn.SyncBatchNorm (torch/nn/modules/_functions.py). One message each way.

#include "shim.hpp"

#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

using shim::Group;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Pointer = c10::intrusive_ptr<c10d::ProcessGroup>;

namespace {

// Count of a rank without images. The kernel divides by the count so far, so 0 would give 0 / 0 if the first
// ranks have no images; next to other ranks' counts this is negligible. PyTorch leaves such ranks out, and
// must wait for the device to find them.
constexpr float NO_IMAGES = 1e-20f;

// Returns a tensor without gaps, channels last or not, as the kernels need.
at::Tensor dense(const at::Tensor& tensor) {
  return tensor.is_contiguous(at::MemoryFormat::ChannelsLast) ? tensor : tensor.contiguous();
}

struct BatchNorm : public torch::autograd::Function<BatchNorm> {
  static at::Tensor forward(
      AutogradContext* context,
      const at::Tensor& given,
      const at::Tensor& weight,
      const at::Tensor& bias,
      const at::Tensor& running_mean,
      const at::Tensor& running_var,
      double momentum,
      double eps,
      const Pointer& group) {
    const at::Tensor input = dense(given);
    const int64_t channels = input.size(1);
    const auto options = running_mean.options().requires_grad(false);
    at::Tensor own;
    if (input.numel() > 0) {
      const auto [mean, invstd] = at::batch_norm_stats(input, eps);
      own = at::cat({mean, invstd, at::full({1}, input.numel() / channels, options)});
    } else {
      own = at::cat({at::zeros({channels}, options), at::ones({channels}, options), at::full({1}, NO_IMAGES, options)});
    }
    at::Tensor all = own.unsqueeze(0);
    if (group) {
      all = at::empty({group->getSize(), 2 * channels + 1}, options);
      at::Tensor to = all.view({-1});
      shim::wait_for(group->_allgather_base(to, own));
      context->saved_data["group"] = c10::IValue::make_capsule(group);
    }
    const at::Tensor counts = all.select(1, 2 * channels).contiguous();
    const auto [mean, invstd] = at::batch_norm_gather_stats_with_counts(
        input, all.narrow(1, 0, channels), all.narrow(1, channels, channels), running_mean, running_var, momentum, eps,
        counts);
    context->save_for_backward({input, weight, mean, invstd, counts.to(at::kInt)});
    return input.numel() > 0 ? at::batch_norm_elemt(input, weight, bias, mean, invstd, eps) : at::empty_like(input);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const auto &input = saved[0], &weight = saved[1], &mean = saved[2], &invstd = saved[3], &counts = saved[4];
    const at::Tensor gradient = dense(gradients[0]);
    const int64_t channels = input.size(1);
    const bool has_images = input.numel() > 0;
    at::Tensor sums, of_weight, of_bias;
    if (has_images) {
      const auto of_rank = at::batch_norm_backward_reduce(gradient, input, mean, invstd, weight, true, true, true);
      sums = at::cat({std::get<0>(of_rank), std::get<1>(of_rank)});
      of_weight = std::get<2>(of_rank);
      of_bias = std::get<3>(of_rank);
    } else {
      // Zeros rather than nothing: the reducer needs a gradient of every parameter.
      sums = at::zeros({2 * channels}, mean.options());
      of_weight = at::zeros_like(weight);
      of_bias = at::zeros_like(weight);
    }
    if (context->saved_data.count("group") != 0) {
      const auto group =
          c10::static_intrusive_pointer_cast<c10d::ProcessGroup>(context->saved_data["group"].toCapsule());
      shim::all_reduce(*group, sums, c10d::ReduceOp::SUM);
    }
    const at::Tensor of_input = has_images
        ? at::batch_norm_backward_elemt(
              gradient, input, mean, invstd, weight, sums.narrow(0, 0, channels), sums.narrow(0, channels, channels),
              counts)
        : at::zeros_like(input);
    const at::Tensor none;
    return {of_input, of_weight, of_bias, none, none, none, none, none};
  }
};

} // namespace

extern "C" {

// `group`: null for a single rank. `parameters`: weight, bias, running mean and running variance; updates the last two.
int32_t dist_batch_norm(
    const Group* group,
    const at::Tensor* input,
    const at::Tensor* const* parameters,
    double momentum,
    double eps,
    at::Tensor** out) {
  return shim::guarded([&] {
    const Pointer ranks = group == nullptr ? Pointer() : group->group;
    *out = new at::Tensor(BatchNorm::apply(
        *input, *parameters[0], *parameters[1], *parameters[2], *parameters[3], momentum, eps, ranks));
  });
}

} // extern "C"
