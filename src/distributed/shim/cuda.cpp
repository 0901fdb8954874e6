// CUDA part: NCCL's backend, and graphs that record a device's work and replay it with one launch. A shared library, so
// that the program starts without CUDA. It does not link group.cpp, so failure messages go into the caller's memory.

#define USE_C10D_NCCL
#include "shim.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#define INSTDISC_ENTRY __attribute__((visibility("default")))

// The size that libtorch_cuda 2.11.0's own destructor frees; it depends on nccl.h's version.
static_assert(sizeof(void*) != 8 || sizeof(c10d::ProcessGroupNCCL) == 1112, "c10d::ProcessGroupNCCL has changed");

namespace {

int32_t told(const char* text, char* message, size_t capacity) noexcept {
  const size_t len = std::min(std::strlen(text), capacity - 1);
  std::memcpy(message, text, len);
  message[len] = 0;
  return 1;
}

// Runs the body; no exception leaves it. 0: done; 1: failed.
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

// All graphs of a recorder use one stream, as autograd runs a backward pass on the stream of its forward
// pass. They share memory, so they must be replayed in the order of their recording.
struct Recorder {
  c10::cuda::CUDAStream stream;
  at::cuda::MempoolId_t pool;
};

struct Graph {
  at::cuda::CUDAGraph graph;
  // During a recording, the stream to return to.
  std::optional<c10::cuda::CUDAStream> outer;

  void leave() {
    if (outer) {
      c10::cuda::setCurrentCUDAStream(*outer);
      outer.reset();
    }
  }

  ~Graph() {
    leave();
  }
};

} // namespace

extern "C" {

INSTDISC_ENTRY int32_t dist_nccl_new(
    const void* store,
    int32_t rank,
    int32_t world,
    int32_t device,
    int64_t timeout_ms,
    void* backend,
    char* message,
    size_t capacity) {
  return guarded(message, capacity, [&] {
    // By default c10d's watchdog ends the process with SIGABRT as soon as a peer's connection breaks or a collective
    // takes too long; our own watcher names the lost rank and ends with an exit code. A user's setting wins.
    setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", 0);
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(device));
    auto options = c10d::ProcessGroupNCCL::Options::create(false);
    options->timeout = std::chrono::milliseconds(timeout_ms);
    *static_cast<shim::BackendPtr*>(backend) = c10::make_intrusive<c10d::ProcessGroupNCCL>(
        *static_cast<const shim::StorePtr*>(store), rank, world, options);
  });
}

// Sets the current device of the calling thread.
INSTDISC_ENTRY int32_t dist_nccl_set_device(int32_t device, char* message, size_t capacity) {
  return guarded(message, capacity, [&] { c10::cuda::set_device(static_cast<c10::DeviceIndex>(device)); });
}

INSTDISC_ENTRY int32_t dist_recorder_new(int32_t device, Recorder** out, char* message, size_t capacity) {
  return guarded(message, capacity, [&] {
    const auto index = static_cast<c10::DeviceIndex>(device);
    c10::cuda::set_device(index);
    *out = new Recorder{c10::cuda::getStreamFromPool(false, index), at::cuda::graph_pool_handle()};
  });
}

INSTDISC_ENTRY void dist_recorder_free(Recorder* recorder) {
  delete recorder;
}

// Starts to record this thread's operators on the device. Other threads may pin memory meanwhile.
INSTDISC_ENTRY int32_t dist_graph_begin(const Recorder* recorder, Graph** out, char* message, size_t capacity) {
  return guarded(message, capacity, [&] {
    const c10::DeviceIndex device = recorder->stream.device_index();
    c10::cuda::set_device(device);
    c10::cuda::device_synchronize();
    // Otherwise the graph would allocate the cached memory of earlier steps a second time.
    c10::cuda::CUDACachingAllocator::emptyCache();
    auto graph = std::make_unique<Graph>();
    graph->outer = c10::cuda::getCurrentCUDAStream(device);
    c10::cuda::setCurrentCUDAStream(recorder->stream);
    graph->graph.capture_begin(recorder->pool, cudaStreamCaptureModeThreadLocal);
    *out = graph.release();
  });
}

INSTDISC_ENTRY int32_t dist_graph_end(Graph* graph, char* message, size_t capacity) {
  const int32_t code = guarded(message, capacity, [&] { graph->graph.capture_end(); });
  graph->leave();
  return code;
}

INSTDISC_ENTRY int32_t dist_graph_replay(Graph* graph, char* message, size_t capacity) {
  return guarded(message, capacity, [&] { graph->graph.replay(); });
}

INSTDISC_ENTRY void dist_graph_free(Graph* graph) {
  delete graph;
}

} // extern "C"
