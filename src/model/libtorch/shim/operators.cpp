// Counts libtorch's operators by name.

#include "shim.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include <ATen/record_function.h>

namespace {

thread_local std::string last_error;

// Operators that launch nothing on a device: views, allocations, and reads, which are counted separately.
const std::unordered_set<std::string>& without_launch() {
  static const std::unordered_set<std::string> names{
      "aten::alias",        "aten::as_strided",   "aten::as_strided_",    "aten::broadcast_to",
      "aten::chunk",        "aten::contiguous",   "aten::detach",         "aten::detach_",
      "aten::diagonal",     "aten::empty",        "aten::empty_like",     "aten::empty_strided",
      "aten::expand",       "aten::expand_as",    "aten::flatten",        "aten::is_nonzero",
      "aten::item",         "aten::lift_fresh",   "aten::movedim",        "aten::narrow",
      "aten::new_empty",    "aten::new_empty_strided", "aten::numpy_T",   "aten::permute",
      "aten::reshape",      "aten::resize_",      "aten::resolve_conj",   "aten::resolve_neg",
      "aten::result_type",  "aten::select",       "aten::set_",           "aten::slice",
      "aten::split",        "aten::split_with_sizes", "aten::squeeze",    "aten::squeeze_",
      "aten::t",            "aten::to",           "aten::transpose",      "aten::unbind",
      "aten::unfold",       "aten::unsqueeze",    "aten::unsqueeze_",     "aten::_unsafe_view",
      "aten::view",         "aten::view_as",      "aten::_reshape_alias", "aten::requires_grad_",
      "aten::retain_grad",  "aten::output_nr",    "aten::_version",       "aten::is_pinned",
      "aten::real",         "aten::type_as",      "aten::linear",         "aten::pin_memory",
      "detach",             "detach_"};
  return names;
}

// Elementwise operators and sums, which on the CPU copy their scalars; on a GPU those copies launch nothing.
const std::unordered_set<std::string>& elementwise() {
  static const std::unordered_set<std::string> names = [] {
    std::unordered_set<std::string> all;
    for (const char* name :
         {"abs",  "add", "addcmul", "addcdiv", "bitwise_and", "bitwise_xor", "clamp", "clamp_min", "copy", "cos",
          "div",  "eq",  "exp",     "fill",    "ge",          "gt",          "isfinite", "le",     "lerp", "log",
          "log1p", "logical_and", "logical_or", "lt", "masked_fill", "maximum", "minimum", "mul", "ne", "neg",
          "pow",  "reciprocal", "relu", "rsqrt", "rsub", "sigmoid", "softplus", "sqrt", "square", "sub", "sum",
          "mean", "where", "zero", "cat", "stack", "full", "ones", "zeros", "ones_like", "zeros_like",
          "scalar_tensor", "index_select", "index_copy", "linalg_vector_norm", "threshold_backward"}) {
      all.insert(std::string("aten::") + name);
      all.insert(std::string("aten::") + name + "_");
    }
    return all;
  }();
  return names;
}

// Whether an operator counts as one, whatever it calls: elementwise ones, those on lists, which on the CPU
// call one for each tensor, and the addition of a gradient to another.
bool is_whole(const char* name) {
  return std::strncmp(name, "aten::_foreach_", 15) == 0 || std::strncmp(name, "aten::_fused_", 13) == 0 ||
      std::strcmp(name, "torch::autograd::AccumulateGrad") == 0 || elementwise().count(name) != 0;
}

struct Frame {
  bool whole;
  bool has_launched;
};

thread_local std::vector<Frame> frames;
std::mutex counting;
std::map<std::string, int64_t> counts;
at::CallbackHandle counter = 0;
bool is_counting = false;

bool within_whole() {
  for (const Frame& frame : frames) {
    if (frame.whole) {
      return true;
    }
  }
  return false;
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  frames.push_back({is_whole(function.name()), false});
  return nullptr;
}

void end(const at::RecordFunction& function, at::ObserverContext*) {
  if (frames.empty()) {
    return;
  }
  const Frame frame = frames.back();
  frames.pop_back();
  const std::string name = function.name();
  if (name == "aten::_local_scalar_dense") {
    // A list operator that reads a scalar on the CPU does not do so on a GPU.
    if (!within_whole()) {
      std::lock_guard<std::mutex> lock(counting);
      counts[name]++;
    }
    return;
  }
  const bool is_operator =
      function.scope() == at::RecordScope::FUNCTION && name.compare(0, 10, "autograd::") != 0;
  const bool is_list = frame.whole && is_operator;
  const bool launches =
      is_list || frame.has_launched || (is_operator && without_launch().count(name) == 0);
  if (!launches) {
    return;
  }
  if (!frames.empty()) {
    frames.back().has_launched = true;
  }
  // Of nested operators only the innermost count.
  if ((frame.whole || !frame.has_launched) && !within_whole()) {
    std::lock_guard<std::mutex> lock(counting);
    counts[name]++;
  }
}

} // namespace

int32_t model_shim::fail(const char* message) noexcept {
  try {
    last_error = message;
    // Drop libtorch's source location and stack.
    last_error.resize(std::min(last_error.find("\nException raised from"), last_error.size()));
  } catch (...) {
    last_error.clear();
  }
  return 1;
}

extern "C" {

const char* model_last_error() {
  return last_error.c_str();
}

int32_t model_operators_start() {
  return model_shim::guarded([] {
    if (!is_counting) {
      counter = at::addGlobalCallback(at::RecordFunctionCallback(&begin, &end)
                                          .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
      is_counting = true;
    }
    std::lock_guard<std::mutex> lock(counting);
    counts.clear();
  });
}

int32_t model_operators_stop() {
  return model_shim::guarded([] {
    if (is_counting) {
      at::removeCallback(counter);
      is_counting = false;
    }
  });
}

// Returns the counts since the last call, a line each: number, space, name. Free with model_text_free.
int32_t model_operators_take(char** text) {
  return model_shim::guarded([&] {
    std::string all;
    {
      std::lock_guard<std::mutex> lock(counting);
      for (const auto& [name, count] : counts) {
        all += std::to_string(count) + " " + name + "\n";
      }
      counts.clear();
    }
    *text = strdup(all.c_str());
  });
}

void model_text_free(char* text) {
  free(text);
}

} // extern "C"
