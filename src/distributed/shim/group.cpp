// C functions over libtorch's process group; `ffi.rs` declares them, and documents each argument.
//
// Every function blocks until done (on CUDA: until the current stream waits for it) and catches every exception.
// Functions return 0, or 1 with a message at dist_last_error.

#include "shim.hpp"

#include <optional>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

using shim::Group;
using shim::guarded;
using shim::Store;
using Op = c10d::ReduceOp::RedOpType;

namespace shim {

void wait_for(const c10::intrusive_ptr<c10d::Work>& work) {
  if (work) {
    work->wait();
  }
}

// gloo and NCCL support neither bool nor i16, and need contiguous memory.
void all_reduce(c10d::ProcessGroup& group, const at::Tensor& tensor, Op op) {
  at::NoGradGuard no_grad;
  at::Tensor target = tensor.detach();
  at::Tensor work_on = target.contiguous();
  if (target.scalar_type() == at::kBool) {
    // A sum of bools means "any"; a byte above 1 would not be a valid bool.
    work_on = work_on.to(at::kByte);
    op = op == Op::SUM ? Op::MAX : op;
  } else if (target.scalar_type() == at::kShort) {
    work_on = work_on.to(at::kInt);
  }
  c10d::AllreduceOptions options;
  options.reduceOp = op;
  std::vector<at::Tensor> tensors{work_on};
  wait_for(group.allreduce(tensors, options));
  if (!work_on.is_same(target)) {
    target.copy_(work_on);
  }
}

// Returns the tensor's contiguous memory as bytes, for transfers that need no type.
static at::Tensor bytes_of(const at::Tensor& tensor) {
  return tensor.detach().contiguous().reshape({-1}).view(at::kByte);
}

// Broadcasts several tensors as one sequence of bytes.
static void broadcast(c10d::ProcessGroup& group, const std::vector<at::Tensor>& tensors, int from) {
  std::vector<at::Tensor> parts;
  for (const auto& tensor : tensors) {
    parts.push_back(bytes_of(tensor));
  }
  c10d::BroadcastOptions options;
  options.rootRank = from;
  std::vector<at::Tensor> flat{at::cat(parts)};
  wait_for(group.broadcast(flat, options));
  if (group.getRank() == from) {
    return;
  }
  int64_t begin = 0;
  for (size_t i = 0; i < tensors.size(); i++) {
    const int64_t len = parts[i].numel();
    // Cloned, since bytes at an odd offset cannot be viewed as wider numbers.
    const auto part = flat[0].narrow(0, begin, len).clone().view(tensors[i].scalar_type());
    tensors[i].detach().copy_(part.view(tensors[i].sizes()));
    begin += len;
  }
}

struct SumWithGradient : public torch::autograd::Function<SumWithGradient> {
  using Pointer = c10::intrusive_ptr<c10d::ProcessGroup>;

  static at::Tensor forward(
      torch::autograd::AutogradContext* context, const at::Tensor& own, const Pointer& group) {
    context->saved_data["group"] = c10::IValue::make_capsule(group);
    at::Tensor sum = own.clone(at::MemoryFormat::Contiguous);
    all_reduce(*group, sum, Op::SUM);
    return sum;
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    const auto group =
        c10::static_intrusive_pointer_cast<c10d::ProcessGroup>(context->saved_data["group"].toCapsule());
    at::Tensor sum = gradients[0].clone(at::MemoryFormat::Contiguous);
    all_reduce(*group, sum, Op::SUM);
    return {sum, at::Tensor()};
  }
};

} // namespace shim

extern "C" {

int32_t dist_group_new(
    Store* store,
    const char* prefix,
    int32_t rank,
    int32_t world,
    int64_t timeout_ms,
    const char* address,
    int32_t cuda_device,
    MakeNccl make_nccl,
    Group** out) {
  return guarded([&] {
    using c10d::ProcessGroup;
    const auto timeout = std::chrono::milliseconds(timeout_ms);
    const auto named = [&](const char* name) -> shim::StorePtr {
      return c10::make_intrusive<c10d::PrefixStore>(std::string(prefix) + name, store->store);
    };
    auto group = c10::make_intrusive<ProcessGroup>(named("group"), rank, world);
    group->setBackend(
        c10::DeviceType::CPU,
        ProcessGroup::BackendType::GLOO,
        shim::make_gloo(named("gloo"), rank, world, timeout, address));
    group->setDefaultBackend(ProcessGroup::BackendType::GLOO);
    if (cuda_device >= 0) {
      const auto nccl_store = named("nccl");
      shim::BackendPtr nccl;
      char message[4096] = "";
      const auto failed =
          make_nccl(&nccl_store, rank, world, cuda_device, timeout_ms, &nccl, message, sizeof message);
      TORCH_CHECK(failed == 0, message);
      const at::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(cuda_device));
      // setBackend overwrites the backend's device with the group's.
      group->setBoundDeviceId(device);
      group->setBackend(c10::DeviceType::CUDA, ProcessGroup::BackendType::NCCL, nccl);
      group->setDefaultBackend(ProcessGroup::BackendType::NCCL);
      nccl->setBoundDeviceId(device);
      // Fails here, not in the first step, if the communicator cannot be created.
      nccl->eagerConnectSingleDevice(device);
    }
    *out = new Group{group};
  });
}

void dist_group_free(Group* group) {
  guarded([&] { delete group; });
}

int32_t dist_all_reduce(Group* group, const at::Tensor* tensor, int32_t op) {
  return guarded([&] {
    const Op ops[] = {Op::SUM, Op::MAX};
    shim::all_reduce(*group->group, *tensor, ops[op]);
  });
}

int32_t dist_broadcast(Group* group, const at::Tensor* const* tensors, size_t count, int32_t from) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    constexpr size_t at_once = 64 << 20;
    std::vector<at::Tensor> run;
    size_t bytes = 0;
    const auto send = [&] {
      if (!run.empty()) {
        shim::broadcast(*group->group, run, from);
      }
      run.clear();
      bytes = 0;
    };
    for (size_t i = 0; i < count; i++) {
      if (tensors[i]->numel() == 0) {
        continue;
      }
      if (!run.empty() && (bytes >= at_once || run[0].device() != tensors[i]->device())) {
        send();
      }
      run.push_back(*tensors[i]);
      bytes += tensors[i]->nbytes();
    }
    send();
  });
}

int32_t dist_all_gather(Group* group, const at::Tensor* all, const at::Tensor* own) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    if (own->numel() == 0) {
      return;
    }
    at::Tensor to = shim::bytes_of(*all);
    at::Tensor from = shim::bytes_of(*own);
    shim::wait_for(group->group->_allgather_base(to, from));
  });
}

int32_t dist_sum_with_gradient(Group* group, const at::Tensor* own, at::Tensor** sum) {
  return guarded([&] { *sum = new at::Tensor(shim::SumWithGradient::apply(*own, group->group)); });
}

} // extern "C"
