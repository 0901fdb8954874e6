// What the parts of this shim share: what tch does not expose of libtorch, behind C functions.
#pragma once

#include <cstdint>
#include <exception>

namespace model_shim {

// Keeps the message for model_last_error of this thread.
int32_t fail(const char* message) noexcept;

// Runs the body; no exception leaves it. 0: done; 1: failed. libtorch's exceptions are standard ones too; named here,
// their type would link the program `instdisc` to libtorch, which it does without.
template <class Body>
inline int32_t guarded(Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    return fail(error.what());
  } catch (...) {
    return fail("an exception of unknown type");
  }
}

} // namespace model_shim
