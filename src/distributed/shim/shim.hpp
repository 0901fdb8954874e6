// What the parts of the shim share. See group.cpp.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <string>

#include <c10/util/Exception.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace shim {

using StorePtr = c10::intrusive_ptr<c10d::Store>;
using BackendPtr = c10::intrusive_ptr<c10d::Backend>;

struct Store {
  StorePtr store;
};

struct Group {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
};

// Keeps the message for dist_last_error of this thread.
int32_t fail(const char* message) noexcept;

// Tells of the exception that is being handled. Inline, so that its table of exceptions, which names libtorch's, goes
// with it where nothing calls it: the program `instdisc` is linked without libtorch.
inline int32_t fail_by_exception() noexcept {
  try {
    throw;
  } catch (const c10::Error& error) {
    return fail(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return fail(error.what());
  } catch (...) {
    return fail("an exception of unknown type");
  }
}

// Runs the body; no exception leaves it. 0: done; 1: failed.
template <class Body>
int32_t guarded(Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (...) {
    return fail_by_exception();
  }
}

// `address`: the local address to listen on, or null for c10d's own choice.
BackendPtr make_gloo(
    const StorePtr& store, int rank, int world, std::chrono::milliseconds timeout, const char* address);

void wait_for(const c10::intrusive_ptr<c10d::Work>& work);

// Adds up, or compares, in place.
void all_reduce(c10d::ProcessGroup& group, const at::Tensor& tensor, c10d::ReduceOp::RedOpType op);

} // namespace shim

// NCCL's entry of the CUDA part; cuda.cpp. Pointers: to a StorePtr, to a BackendPtr.
using MakeNccl = int32_t (*)(
    const void* store,
    int32_t rank,
    int32_t world,
    int32_t device,
    int64_t timeout_ms,
    void* backend,
    char* message,
    size_t capacity);
