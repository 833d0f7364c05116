#include "subscriber.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <thread>

#include "crc32c.h"

using namespace ringpost::v1;

namespace {

constexpr uint32_t kSubscriptionId = 1;
constexpr uint32_t kHeartbeatMs = 1000;
// A stream that was silent for three heartbeats is dead, whatever TCP says.
constexpr Milliseconds kSilence(3 * kHeartbeatMs);
// Credit in bytes; only messages are bounded here.
constexpr uint64_t kPlenty = uint64_t{1} << 40;
constexpr std::chrono::seconds kAsk(10);

// Cancels a call when nothing was heard for a while.
class Watch {
 public:
  explicit Watch(grpc::ClientContext& context) : thread_([this, &context] { run(context); }) {}
  ~Watch() {
    tell(&over_);
    thread_.join();
  }
  void heard() { tell(&heard_); }

 private:
  void tell(bool* what) {
    std::lock_guard<std::mutex> lock(mutex_);
    *what = true;
    changed_.notify_one();
  }
  void run(grpc::ClientContext& context) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (changed_.wait_for(lock, kSilence, [this] { return heard_ || over_; }) && !over_) heard_ = false;
    if (!over_) context.TryCancel();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool heard_ = false;
  bool over_ = false;
  std::thread thread_;
};

// Checks that a batch came as it was sent.
Batch unpack(const DeliveredBatch& delivered) {
  const std::string where = "the batch at offset " + std::to_string(delivered.first_offset());
  if (crc32c(delivered.batch()) != delivered.crc32c()) throw Problem(where + " does not match its CRC-32C", true);
  Batch batch;
  if (!batch.ParseFromString(delivered.batch()) || batch.messages_size() != static_cast<int>(delivered.count())) {
    throw Problem(where + " does not hold the messages that were announced", true);
  }
  return batch;
}

void print(uint64_t offset, uint32_t attempt, const Message& message) {
  std::string content;
  if (!google::protobuf::util::MessageToJsonString(message, &content).ok()) throw Problem("no JSON for it", true);
  std::cout << "{\"offset\": " << offset << ", \"attempt\": " << attempt << ", \"message\": " << content << "}"
            << std::endl;
}

void add(Ranges& ranges, uint64_t offset) {
  if (!ranges.empty() && ranges.rbegin()->last() + 1 == offset) {
    ranges.rbegin()->set_last(offset);
    return;
  }
  OffsetRange& range = *ranges.Add();
  range.set_first(offset);
  range.set_last(offset);
}

}  // namespace

Subscriber::Subscriber(const Arguments& arguments)
    : channel_(arguments.text("channel")),
      group_(arguments.has("group") ? arguments.text("group") : ""),
      credit_(arguments.number("credit")),
      left_(arguments.number("count")),
      next_(arguments.has("from") ? arguments.number("from") : 0) {
  if (arguments.has("nack")) nack_ = arguments.number("nack");
}

void Subscriber::work(Session& session) {
  settle_unanswered(session);
  if (left_ == 0) return;
  grpc::ClientContext context;
  session.prepare(context);
  auto stub = SubscriberService::NewStub(session.channel());
  auto stream = stub->Subscribe(&context);
  delivered_ = 0;
  granted_ = credit_;
  // Whether a Write succeeds does not matter here or below: Finish says why a stream is over.
  stream->Write(opening());
  try {
    Watch watch(context);
    SubscribeResponse response;
    while (left_ > 0 && stream->Read(&response)) {
      watch.heard();
      event(*stream, response, session);
    }
    if (left_ == 0) {
      // The node releases what is leased, answers what it was asked, and ends the stream.
      stream->WritesDone();
      while (stream->Read(&response)) watch.heard();
    }
  } catch (...) {
    context.TryCancel();
    stream->Finish();
    throw;
  }
  const grpc::Status status = stream->Finish();
  if (left_ == 0) return;
  if (!status.ok()) throw Problem(status);
  throw Problem("the node ended the stream", false);
}

SubscribeRequest Subscriber::opening() const {
  SubscribeRequest request;
  OpenSubscription& open = *request.mutable_open();
  open.set_subscription_id(kSubscriptionId);
  open.set_channel(channel_);
  open.set_group(group_);
  open.set_consumer("c++");
  if (alone()) open.mutable_start()->set_offset(next_);
  open.mutable_credit()->set_messages(credit_);
  open.mutable_credit()->set_bytes(kPlenty);
  open.set_heartbeat_interval_ms(kHeartbeatMs);
  return request;
}

void Subscriber::event(Stream& stream, const SubscribeResponse& response, Session& session) {
  switch (response.event_case()) {
    case SubscribeResponse::kOpened:
      session.worked();
      break;
    case SubscribeResponse::kDeliver:
      for (const DeliveredBatch& batch : response.deliver().batches()) deliver(stream, batch);
      grant(stream);
      break;
    case SubscribeResponse::kSettled:
      if (response.settled().has_failure()) throw Problem(response.settled().failure());
      if (unanswered_.erase(response.settled().correlation()) > 0) count(response.settled().results());
      break;
    case SubscribeResponse::kGap:
      next_ = response.gap().missing().last() + 1;
      break;
    case SubscribeResponse::kDrain:
      throw Problem("the node is draining", false);
    case SubscribeResponse::kClosed:
      throw Problem(response.closed().failure());
    default:
      break;
  }
}

void Subscriber::deliver(Stream& stream, const DeliveredBatch& delivered) {
  const Batch batch = unpack(delivered);
  Ranges done;
  uint64_t offset = delivered.first_offset();
  for (const Message& message : batch.messages()) {
    if (alone() && left_ == 0) break;
    print(offset, delivered.attempt(), message);
    if (alone()) {
      --left_;
    } else if (nack_ == offset) {
      nack_.reset();
      Ranges refused;
      add(refused, offset);
      settle(stream, refused, false);
    } else {
      add(done, offset);
    }
    next_ = ++offset;
  }
  delivered_ += delivered.count();
  if (!done.empty()) settle(stream, done, true);
}

// Everything delivered is done with: as much again may come. Not for every message a grant.
void Subscriber::grant(Stream& stream) {
  const uint64_t total = delivered_ + credit_;
  if (total - granted_ < (credit_ + 1) / 2) return;
  granted_ = total;
  SubscribeRequest request;
  request.mutable_credit()->set_subscription_id(kSubscriptionId);
  request.mutable_credit()->mutable_credit()->set_messages(total);
  request.mutable_credit()->mutable_credit()->set_bytes(kPlenty);
  stream.Write(request);
}

void Subscriber::settle(Stream& stream, const Ranges& ranges, bool ack) {
  SubscribeRequest request;
  Settle& settle = *request.mutable_settle();
  settle.set_subscription_id(kSubscriptionId);
  settle.set_correlation(++correlation_);
  *settle.mutable_ranges() = ranges;
  if (ack) {
    settle.mutable_ack();
    unanswered_[correlation_] = ranges;
  } else {
    settle.mutable_nack();
  }
  stream.Write(request);
}

// Notes what is settled for sure. Other outcomes mean: it was, or will be, delivered again.
void Subscriber::count(const google::protobuf::RepeatedPtrField<SettledRange>& results) {
  for (const SettledRange& result : results) {
    if (result.outcome() != OUTCOME_DONE && result.outcome() != OUTCOME_ALREADY) continue;
    const OffsetRange& range = result.range();
    std::cout << "{\"acked\": [" << range.first() << ", " << range.last() << "]}" << std::endl;
    left_ -= std::min(left_, range.last() - range.first() + 1);
  }
}

// Confirms work that was done when a stream broke: through any node, whoever holds the messages now.
void Subscriber::settle_unanswered(Session& session) {
  auto stub = GroupService::NewStub(session.channel());
  while (!unanswered_.empty()) {
    grpc::ClientContext context;
    session.prepare(context);
    context.set_deadline(std::chrono::system_clock::now() + kAsk);
    SettleMessagesRequest request;
    request.set_channel(channel_);
    request.set_group(group_);
    *request.mutable_ranges() = unanswered_.begin()->second;
    request.mutable_ack();
    SettleMessagesResponse answer;
    const grpc::Status status = stub->Settle(&context, request, &answer);
    if (!status.ok()) throw Problem(status);
    unanswered_.erase(unanswered_.begin());
    count(answer.results());
  }
}
