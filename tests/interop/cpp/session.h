// One connection to one node, the errors that end it, and the way to the next one.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ringpost/v1/common.pb.h"

using Milliseconds = std::chrono::milliseconds;

// The arguments behind the mode, --name value pairs.
class Arguments {
 public:
  Arguments(int count, char** values);
  bool has(const std::string& name) const { return values_.count(name) > 0; }
  const std::string& text(const std::string& name) const;
  uint64_t number(const std::string& name) const { return std::stoull(text(name)); }

 private:
  std::map<std::string, std::string> values_;
};

// A request failed, or a stream ended. `definite`: nothing was changed, and trying again cannot mend it.
class Problem : public std::runtime_error {
 public:
  Problem(const std::string& text, bool definite, Milliseconds retry_after = Milliseconds(0))
      : std::runtime_error(text), definite(definite), retry_after(retry_after) {}
  explicit Problem(const grpc::Status& status);
  // What the broker says inside a stream, where a status would end everything.
  explicit Problem(const ringpost::v1::Failure& failure);

  const bool definite;
  const Milliseconds retry_after;
};

class Session {
 public:
  // Calls `work` with session after session, each at the next address, until it returns. Pauses between them grow until
  // one of them has worked. Throws the Problem that trying again cannot mend.
  static void run(const std::string& addresses, const std::function<void(Session&)>& work);

  explicit Session(const std::string& address);
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  // For each call, before it begins.
  void prepare(grpc::ClientContext& context) const;
  // The node does its work: the next pause is a short one.
  void worked() { worked_ = true; }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  bool worked_ = false;
};
