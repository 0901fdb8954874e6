// Declarations shared by the files of the shim. See group.cpp.
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

// Stores the message of the current exception. Inline, so that the linker can drop it with its exception
// table, which names libtorch's types: the program `instdisc` is linked without libtorch.
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

// `address`: local address to listen on, or null for c10d's choice.
BackendPtr make_gloo(
    const StorePtr& store, int rank, int world, std::chrono::milliseconds timeout, const char* address);

void wait_for(const c10::intrusive_ptr<c10d::Work>& work);

// Reduces in place.
void all_reduce(c10d::ProcessGroup& group, const at::Tensor& tensor, c10d::ReduceOp::RedOpType op);

} // namespace shim

// NCCL's entry point in the CUDA part; see cuda.cpp. The pointers are to a StorePtr and a BackendPtr.
using MakeNccl = int32_t (*)(
    const void* store,
    int32_t rank,
    int32_t world,
    int32_t device,
    int64_t timeout_ms,
    void* backend,
    char* message,
    size_t capacity);
