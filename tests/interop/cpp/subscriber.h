#pragma once

#include <map>
#include <optional>
#include <string>

#include "ringpost/v1/group.grpc.pb.h"
#include "ringpost/v1/subscribe.grpc.pb.h"
#include "session.h"

using Ranges = google::protobuf::RepeatedPtrField<ringpost::v1::OffsetRange>;

// Reads a channel, alone or as a member of a group.
class Subscriber {
 public:
  explicit Subscriber(const Arguments& arguments);
  // Returns when everything is read, in a group settled; throws a Problem.
  void work(Session& session);

 private:
  using Stream = grpc::ClientReaderWriter<ringpost::v1::SubscribeRequest, ringpost::v1::SubscribeResponse>;

  bool alone() const { return group_.empty(); }
  ringpost::v1::SubscribeRequest opening() const;
  void event(Stream& stream, const ringpost::v1::SubscribeResponse& response, Session& session);
  void deliver(Stream& stream, const ringpost::v1::DeliveredBatch& batch);
  void grant(Stream& stream);
  void settle(Stream& stream, const Ranges& ranges, bool ack);
  void count(const google::protobuf::RepeatedPtrField<ringpost::v1::SettledRange>& results);
  void settle_unanswered(Session& session);

  const std::string channel_;
  const std::string group_;
  const uint64_t credit_;
  // Messages still to print, or in a group to settle.
  uint64_t left_;
  // Alone: where to go on.
  uint64_t next_;
  // Group: the offset to refuse once, and ranges whose ack has no answer yet, by correlation.
  std::optional<uint64_t> nack_;
  std::map<uint64_t, Ranges> unanswered_;
  uint64_t correlation_ = 0;
  // On this stream.
  uint64_t delivered_ = 0;
  uint64_t granted_ = 0;
};
