// The NCCL backend: a shared library of its own, so that the program needs nothing of CUDA to start.

#define USE_C10D_NCCL
#include "shim.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

// The size that libtorch_cuda 2.11.0's own destructor frees; it depends on the version of nccl.h.
static_assert(sizeof(void*) != 8 || sizeof(c10d::ProcessGroupNCCL) == 1112, "c10d::ProcessGroupNCCL has changed");

namespace {

int32_t told(const char* text, char* message, size_t capacity) noexcept {
  const size_t len = std::min(std::strlen(text), capacity - 1);
  std::memcpy(message, text, len);
  message[len] = 0;
  return 1;
}

template <class Body>
int32_t guarded(char* message, size_t capacity, Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const c10::Error& error) {
    return told(error.what_without_backtrace(), message, capacity);
  } catch (const std::exception& error) {
    return told(error.what(), message, capacity);
  } catch (...) {
    return told("an exception of unknown type", message, capacity);
  }
}

} // namespace

extern "C" {

__attribute__((visibility("default"))) int32_t dist_nccl_new(
    const void* store,
    int32_t rank,
    int32_t world,
    int32_t device,
    int64_t timeout_ms,
    void* backend,
    char* message,
    size_t capacity) {
  return guarded(message, capacity, [&] {
    // By itself c10d's watchdog ends the process with SIGABRT as soon as a peer's connection breaks or a collective
    // takes too long; our own watch names the lost rank and ends with an exit code. Who sets this wants otherwise.
    setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", 0);
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(device));
    auto options = c10d::ProcessGroupNCCL::Options::create(false);
    options->timeout = std::chrono::milliseconds(timeout_ms);
    *static_cast<shim::BackendPtr*>(backend) = c10::make_intrusive<c10d::ProcessGroupNCCL>(
        *static_cast<const shim::StorePtr*>(store), rank, world, options);
  });
}

// The current device belongs to a thread.
__attribute__((visibility("default"))) int32_t dist_nccl_set_device(
    int32_t device, char* message, size_t capacity) {
  return guarded(message, capacity, [&] { c10::cuda::set_device(static_cast<c10::DeviceIndex>(device)); });
}

} // extern "C"
