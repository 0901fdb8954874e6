// Declarations shared by the files of this shim, which exposes functions of libtorch that tch lacks.
#pragma once

#include <cstdint>
#include <exception>

namespace model_shim {

// Keeps the message for model_last_error of this thread.
int32_t fail(const char* message) noexcept;

// Runs the body; no exception leaves it. 0: done; 1: failed. Catches only standard exceptions, which libtorch's are
// too: naming their type would link the program `instdisc`, which does without libtorch, to it.
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
