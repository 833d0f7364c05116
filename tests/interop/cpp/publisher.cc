#include "publisher.h"

#include <algorithm>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <optional>
#include <random>
#include <thread>

#include "crc32c.h"

using namespace ringpost::v1;

// What waits for the thread that sends.
class Outbox {
 public:
  void push(PublishRequest request) {
    std::lock_guard<std::mutex> lock(mutex_);
    requests_.push_back(std::move(request));
    changed_.notify_one();
  }
  // Nothing more is to be sent. `drop`: what waits neither.
  void close(bool drop) {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    if (drop) requests_.clear();
    changed_.notify_one();
  }
  // Waits for the next; nothing once it is closed and empty.
  std::optional<PublishRequest> pop() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || !requests_.empty(); });
    if (requests_.empty()) return std::nullopt;
    PublishRequest request = std::move(requests_.front());
    requests_.pop_front();
    return request;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<PublishRequest> requests_;
  bool closed_ = false;
};

namespace {

// At most so many batches of a producer may be unanswered on one channel.
constexpr size_t kMaxUnanswered = 64;

uint64_t random_id() {
  std::random_device device;
  return (uint64_t{device()} << 32 | device()) | 1;
}

}  // namespace

Publisher::Publisher(const Arguments& arguments)
    : channel_(arguments.text("channel")),
      name_(arguments.text("producer")),
      count_(arguments.number("count")),
      batch_(arguments.number("batch")),
      pause_(arguments.has("pause-ms") ? arguments.number("pause-ms") : 0),
      producer_id_(random_id()) {}

void Publisher::work(Session& session) {
  grpc::ClientContext context;
  session.prepare(context);
  auto stub = PublisherService::NewStub(session.channel());
  auto stream = stub->PublishStream(&context);
  Outbox outbox;
  std::thread sender([&] {
    while (auto request = outbox.pop()) {
      PublishStreamRequest envelope;
      *envelope.mutable_publish() = std::move(*request);
      // False says only that the stream is over; Finish says why.
      if (!stream->Write(envelope)) return;
      std::this_thread::sleep_for(pause_);
    }
    // The node answers what it has and ends the stream.
    stream->WritesDone();
  });
  std::exception_ptr problem;
  try {
    read(*stream, outbox, session);
  } catch (...) {
    problem = std::current_exception();
    context.TryCancel();
  }
  outbox.close(true);
  sender.join();
  const grpc::Status status = stream->Finish();
  if (problem) std::rethrow_exception(problem);
  if (!status.ok()) throw Problem(status);
  if (!done()) throw Problem("the node is draining", false);
}

void Publisher::read(grpc::ClientReaderWriter<PublishStreamRequest, PublishStreamResponse>& stream, Outbox& outbox,
                     Session& session) {
  size_t window = kMaxUnanswered;
  bool leaving = false;
  PublishStreamResponse response;
  while (stream.Read(&response)) {
    if (response.has_opened()) {
      window = std::min<size_t>(window, response.opened().max_unanswered_batches());
      for (const PublishRequest& request : unanswered_) outbox.push(request);
    }
    for (const PublishResult& result : response.results()) {
      answered(result);
      session.worked();
    }
    if (response.has_drain()) {
      // What waits to be sent is sent on the next stream.
      leaving = true;
      outbox.close(true);
    }
    while (!leaving && next_ < count_ && unanswered_.size() < window) {
      unanswered_.push_back(next_batch());
      outbox.push(unanswered_.back());
    }
    if (done()) outbox.close(false);
  }
}

// The outcome of the oldest batch: answers of one channel come in the order of its batches.
void Publisher::answered(const PublishResult& result) {
  if (result.has_failure()) throw Problem(result.failure());
  const PublishResponse& stored = result.stored();
  std::cout << "{\"first_offset\": " << stored.first_offset() << ", \"count\": " << stored.count()
            << ", \"duplicate\": " << (stored.duplicate() ? "true" : "false") << "}" << std::endl;
  unanswered_.pop_front();
}

PublishRequest Publisher::next_batch() {
  Batch batch;
  PublishRequest request;
  request.set_first_sequence(next_);
  for (const uint64_t end = std::min(next_ + batch_, count_); next_ < end; ++next_) {
    *batch.add_messages() = message(next_);
  }
  request.set_channel(channel_);
  request.set_batch(batch.SerializeAsString());
  request.set_count(batch.messages_size());
  request.set_crc32c(crc32c(request.batch()));
  request.set_durability(DURABILITY_QUORUM);
  request.set_producer_id(producer_id_);
  return request;
}

Message Publisher::message(uint64_t number) const {
  const std::string digits = std::to_string(number);
  Message message;
  message.set_key(name_ + "-" + std::to_string(number % 7));
  message.set_data(name_ + " " + digits + '\0' + '\xFF' + static_cast<char>(number));
  (*message.mutable_headers())["number"] = digits;
  (*message.mutable_headers())["note"] = "he said \"grüezi\"";
  message.set_message_id(name_ + "/" + digits);
  return message;
}
