#pragma once

#include <deque>
#include <string>

#include "ringpost/v1/publish.grpc.pb.h"
#include "session.h"

class Outbox;

// One idempotent producer on one channel. A batch keeps its numbers however often it is sent, so that the broker stores
// it once. There is one way to recover: leave the stream, and send everything unanswered again, in order.
class Publisher {
 public:
  explicit Publisher(const Arguments& arguments);
  // Returns when everything is stored; throws a Problem.
  void work(Session& session);

 private:
  void read(grpc::ClientReaderWriter<ringpost::v1::PublishStreamRequest, ringpost::v1::PublishStreamResponse>& stream,
            Outbox& outbox, Session& session);
  void answered(const ringpost::v1::PublishResult& result);
  ringpost::v1::PublishRequest next_batch();
  ringpost::v1::Message message(uint64_t number) const;
  bool done() const { return next_ == count_ && unanswered_.empty(); }

  const std::string channel_;
  const std::string name_;
  const uint64_t count_;
  const uint64_t batch_;
  const Milliseconds pause_;
  const uint64_t producer_id_;
  // Number of the next message that is in no batch yet.
  uint64_t next_ = 0;
  std::deque<ringpost::v1::PublishRequest> unanswered_;
};
