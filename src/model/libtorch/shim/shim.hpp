// What the parts of this shim share: what tch does not expose of libtorch, behind C functions.
#pragma once

#include <cstdint>
#include <exception>

#include <c10/util/Exception.h>

namespace model_shim {

// Keeps the message for model_last_error of this thread.
int32_t fail(const char* message) noexcept;

// Runs the body; no exception leaves it. 0: done; 1: failed. Inline, so that its table of exceptions, which names
// libtorch's, goes with it where nothing calls it: the program `instdisc` is linked without libtorch.
template <class Body>
inline int32_t guarded(Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const c10::Error& error) {
    return fail(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return fail(error.what());
  } catch (...) {
    return fail("an exception of unknown type");
  }
}

} // namespace model_shim
