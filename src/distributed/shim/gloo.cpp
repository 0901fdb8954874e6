// gloo backend, in its own file since its header needs the stand-ins for gloo's.

#define USE_C10D_GLOO
#include "shim.hpp"

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

// The size that libtorch_cpu 2.11.0's own destructor frees.
static_assert(sizeof(void*) != 8 || sizeof(c10d::ProcessGroupGloo) == 488, "c10d::ProcessGroupGloo has changed");

namespace shim {

BackendPtr make_gloo(
    const StorePtr& store, int rank, int world, std::chrono::milliseconds timeout, const char* address) {
  using c10d::ProcessGroupGloo;
  c10::intrusive_ptr<ProcessGroupGloo::Options> options;
  if (address == nullptr) {
    // Sets the devices from GLOO_SOCKET_IFNAME or the machine's name.
    options = ProcessGroupGloo::Options::create_default(timeout);
  } else {
    options = ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(ProcessGroupGloo::createDeviceForHostname(address));
  }
  return c10::make_intrusive<ProcessGroupGloo>(store, rank, world, options);
}

} // namespace shim
