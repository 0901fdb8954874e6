// Stand-in for gloo's headers, which libtorch's wheel omits although libtorch_cpu exports gloo itself.
//
// c10d's ProcessGroupGloo.hpp needs only these names: it holds pointers to gloo's types and derives one class
// from its abstract store. No gloo type is instantiated here, so no layout depends on this file; gloo.cpp
// checks the size of ProcessGroupGloo.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

namespace transport {
class Device;
class UnboundBuffer;
} // namespace transport

namespace rendezvous {

class Store {
 public:
  virtual ~Store();
  virtual void set(const std::string& key, const std::vector<char>& data) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) = 0;
};

} // namespace rendezvous
} // namespace gloo
