// C functions over libtorch's TCPStore.

#include "shim.hpp"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>

#include <ATen/Version.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/version.h>
#include <unistd.h>

namespace shim {

static thread_local std::string last_error;

int32_t fail(const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
  return 1;
}

} // namespace shim

using shim::guarded;
using shim::Store;

extern "C" {

const char* dist_last_error() {
  return shim::last_error.c_str();
}

// Fails if the loaded libtorch is not the version of the headers. Silences c10d, which otherwise prints C++
// stack traces, unless the user has set libtorch's log level.
int32_t dist_prepare() {
  return guarded([] {
    const std::string told = at::show_config();
    TORCH_CHECK(
        told.find("TORCH_VERSION=" TORCH_VERSION) != std::string::npos,
        "built for libtorch " TORCH_VERSION ", but another one was loaded: ", told);
    // libtorch's flight recorder, which nothing here reads, is not safe when several groups of one process
    // record at once. Users who want its dumps set the variable.
    static std::once_flag recorder;
    std::call_once(recorder, [] { setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/0); });
    if (std::getenv("TORCH_CPP_LOG_LEVEL") != nullptr) {
      c10::initLogging();
    } else {
      FLAGS_caffe2_log_level = c10::GLOG_ERROR;
    }
  });
}

// With `listening` (a bound socket, else -1) this store serves, and takes ownership of the socket.
int32_t dist_store_new(const char* host, uint16_t port, int32_t listening, int64_t timeout_ms, Store** out) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = listening >= 0;
    if (listening >= 0) {
      options.masterListenFd = listening;
    }
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    *out = new Store{c10::make_intrusive<c10d::TCPStore>(host, options)};
  });
}

void dist_store_free(Store* store) {
  guarded([&] { delete store; });
}

int32_t dist_store_set(Store* store, const char* key, const uint8_t* bytes, size_t len) {
  return guarded([&] { store->store->set(key, std::vector<uint8_t>(bytes, bytes + len)); });
}

// Returns null if the key has no value; otherwise the caller frees the bytes with dist_bytes_free.
int32_t dist_store_try_get(Store* store, const char* key, uint8_t** bytes, size_t* len) {
  return guarded([&] {
    *bytes = nullptr;
    if (!store->store->check({key})) {
      return;
    }
    const auto value = store->store->get(key);
    auto* copy = static_cast<uint8_t*>(std::malloc(value.size() + 1));
    TORCH_CHECK(copy != nullptr, "out of memory");
    std::memcpy(copy, value.data(), value.size());
    *bytes = copy;
    *len = value.size();
  });
}

void dist_bytes_free(uint8_t* bytes) {
  std::free(bytes);
}

int32_t dist_store_add(Store* store, const char* key, int64_t by, int64_t* sum) {
  return guarded([&] { *sum = store->store->add(key, by); });
}

// Ends the process without exit handlers: those of CUDA and NCCL may wait for a device that never answers.
[[noreturn]] void dist_end_process(int32_t code) {
  _exit(code);
}

} // extern "C"
