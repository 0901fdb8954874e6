// C functions over c10d's Reducer, the engine of DistributedDataParallel.

#include "shim.hpp"

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include <torch/csrc/distributed/c10d/reducer.hpp>

using shim::Group;
using shim::guarded;

extern "C" {

int32_t dist_reducer_new(
    Group* group, const at::Tensor* const* parameters, size_t count, c10d::Reducer** out) {
  return guarded([&] {
    std::vector<at::Tensor> own;
    for (size_t i = 0; i < count; i++) {
      own.push_back(*parameters[i]);
    }
    c10d::verify_params_across_processes(group->group, own, std::nullopt);
    const size_t first = c10d::kDefaultFirstBucketBytes;
    const size_t cap = c10d::kDefaultBucketBytesCap;
    auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(own, {first, cap}));
    // Gradients arrive in about the reverse order of the parameters.
    std::reverse(buckets.begin(), buckets.end());
    *out = new c10d::Reducer(
        own,
        buckets,
        group->group,
        /*expect_sparse_gradients=*/std::vector<bool>(count, false),
        /*bucket_bytes_cap=*/c10d::kDefaultBucketBytesCap,
        /*find_unused_parameters=*/false,
        /*gradient_as_bucket_view=*/false,
        /*param_names=*/{},
        /*first_bucket_bytes_cap=*/c10d::kDefaultFirstBucketBytes,
        /*skip_all_reduce_unused_params=*/false,
        /*use_python_reducer=*/false,
        /*bucket_bytes_cap_list=*/{});
  });
}

void dist_reducer_free(c10d::Reducer* reducer) {
  guarded([&] { delete reducer; });
}

int32_t dist_reducer_backward(c10d::Reducer* reducer, const at::Tensor* loss, int32_t last) {
  return guarded([&] {
    if (last == 0) {
      // Without preparation the hooks accumulate gradients locally.
      loss->backward();
      return;
    }
    reducer->prepare_for_forward();
    reducer->prepare_for_backward({*loss});
    loss->backward();
    // Orders the buckets by the arrival of gradients, once. Fails if a parameter had no gradient, which would
    // otherwise go unnoticed until the next step.
    reducer->rebuild_buckets();
  });
}

} // extern "C"
