// Copies between the host and a GPU that do not block the host.

#include "shim.hpp"

#include <cstring>
#include <map>
#include <memory>

#include <ATen/Functions.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

using model_shim::guarded;

namespace {

// Returns a stream for copies to each device, separate from the compute stream.
c10::Stream copy_stream(c10::Device device) {
  thread_local std::map<c10::DeviceIndex, c10::Stream> streams;
  auto found = streams.find(device.index());
  if (found == streams.end()) {
    const c10::impl::VirtualGuardImpl devices(device.type());
    found = streams.emplace(device.index(), devices.getStreamFromGlobalPool(device)).first;
  }
  return found->second;
}

} // namespace

extern "C" {

// Copies bytes to a CUDA device while it computes; later computation waits for them. The bytes are read
// before this returns, into pinned memory that libtorch keeps for the next copy.
int32_t model_upload(const uint8_t* bytes, int64_t len, int32_t device_index, at::Tensor** out) {
  return guarded([&] {
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device_index));
    const auto u8 = at::TensorOptions().dtype(at::kByte);
    const at::Tensor host = at::empty({len}, u8.device(at::kCPU).pinned_memory(true));
    std::memcpy(host.data_ptr(), bytes, static_cast<size_t>(len));
    const c10::impl::VirtualGuardImpl devices(device.type());
    const c10::Stream computing = devices.getStream(device);
    const c10::Stream copying = copy_stream(device);
    c10::Event copied(device.type());
    at::Tensor there;
    {
      const c10::StreamGuard guard(copying);
      there = at::empty({len}, u8.device(device));
      there.copy_(host, /*non_blocking=*/true);
      copied.record(copying);
    }
    copied.block(computing);
    there.record_stream(computing);
    *out = new at::Tensor(there);
  });
}

// Marks the work queued on a CUDA device so far.
int32_t model_event_new(int32_t device_index, c10::Event** out) {
  return guarded([&] {
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device_index));
    auto event = std::make_unique<c10::Event>(device.type());
    event->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
    *out = event.release();
  });
}

// Waits until the device has done the marked work.
int32_t model_event_wait(const c10::Event* event) {
  return guarded([&] { event->synchronize(); });
}

void model_event_free(c10::Event* event) {
  guarded([&] { delete event; });
}

} // extern "C"
