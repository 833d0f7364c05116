#include "session.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>
#include <thread>

namespace {

constexpr Milliseconds kFirstPause(50);
constexpr Milliseconds kLastPause(2000);

bool is_definite(int code) {
  switch (code) {
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::NOT_FOUND:
    case grpc::StatusCode::ALREADY_EXISTS:
    case grpc::StatusCode::OUT_OF_RANGE:
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::PERMISSION_DENIED:
    case grpc::StatusCode::UNAUTHENTICATED:
    case grpc::StatusCode::UNIMPLEMENTED:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
    case grpc::StatusCode::DATA_LOSS:
      return true;
    default:
      return false;
  }
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::shared_ptr<grpc::ChannelCredentials> credentials() {
  const std::string ca = environment("RINGPOST_CA");
  if (ca.empty()) return grpc::InsecureChannelCredentials();
  std::ifstream file(ca);
  std::stringstream content;
  content << file.rdbuf();
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = content.str();
  return grpc::SslCredentials(options);
}

Milliseconds jittered(Milliseconds pause) {
  static std::mt19937 random{std::random_device{}()};
  return Milliseconds(std::uniform_int_distribution<int64_t>(pause.count() / 2, pause.count())(random));
}

std::vector<std::string> split(const std::string& addresses) {
  std::vector<std::string> found;
  std::stringstream rest(addresses);
  for (std::string one; std::getline(rest, one, ',');) found.push_back(one);
  return found;
}

}  // namespace

Arguments::Arguments(int count, char** values) {
  for (int i = 2; i + 1 < count; i += 2) values_[std::string(values[i]).substr(2)] = values[i + 1];
}

const std::string& Arguments::text(const std::string& name) const {
  auto found = values_.find(name);
  if (found == values_.end()) throw Problem("--" + name + " is missing", true);
  return found->second;
}

// Of RESOURCE_EXHAUSTED a status says in its details (google.rpc.RetryInfo) whether to come back, and when. Here they are
// not read: the next pause will do.
Problem::Problem(const grpc::Status& status)
    : Problem(status.error_message(),
              is_definite(status.error_code()) && status.error_code() != grpc::StatusCode::RESOURCE_EXHAUSTED) {}

Problem::Problem(const ringpost::v1::Failure& failure)
    : Problem(failure.reason() + ": " + failure.message(), is_definite(failure.code()) && failure.retry_after_ms() == 0,
              Milliseconds(failure.retry_after_ms())) {}

void Session::run(const std::string& addresses, const std::function<void(Session&)>& work) {
  const std::vector<std::string> nodes = split(addresses);
  Milliseconds pause = kFirstPause;
  for (size_t attempt = 0;; ++attempt) {
    Session session(nodes[attempt % nodes.size()]);
    try {
      work(session);
      return;
    } catch (const Problem& problem) {
      if (problem.definite) throw;
      std::cerr << "trying again: " << problem.what() << std::endl;
      if (session.worked_) pause = kFirstPause;
      std::this_thread::sleep_for(std::max(problem.retry_after, jittered(pause)));
      pause = std::min(2 * pause, kLastPause);
    }
  }
}

Session::Session(const std::string& address) {
  grpc::ChannelArguments arguments;
  // Each session has a connection of its own.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A node may be set to take messages above gRPC's usual bound.
  arguments.SetMaxReceiveMessageSize(64 << 20);
  // A node that is frozen or cut off is noticed even while nothing is to be said.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  channel_ = grpc::CreateCustomChannel(address, credentials(), arguments);
}

void Session::prepare(grpc::ClientContext& context) const {
  const std::string token = environment("RINGPOST_TOKEN");
  if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
}
