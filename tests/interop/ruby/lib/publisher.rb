# frozen_string_literal: true

require "crc32c"
require "json"
require "securerandom"
require "session"

# One idempotent producer on one channel. A batch keeps its numbers however often it is sent, so that the broker stores
# it once. There is one way to recover: leave the stream, and send everything unanswered again, in order.
class Publisher
  include Ringpost::V1

  # At most so many batches of a producer may be unanswered on one channel.
  MAX_UNANSWERED = 64

  def initialize(options)
    @channel = options.fetch("channel")
    @name = options.fetch("producer")
    @count = Integer(options.fetch("count"))
    @batch = Integer(options.fetch("batch"))
    @pause = Integer(options.fetch("pause-ms", 0)) / 1000.0
    @producer_id = SecureRandom.random_number(1..(2**64 - 1))
    # Number of the next message that was never sent.
    @next = 0
    @unanswered = []
  end

  def work(session)
    @requests = Queue.new
    requests = Enumerator.new { |stream| send_all(@requests, stream) }
    call = session.publisher.publish_stream(requests, return_op: true, metadata: session.metadata)
    call.execute.each { |response| take(response, session) }
    raise Lost, "the node is draining" unless done?
  ensure
    # Ends the thread that sends.
    @requests.clear.close
    call&.cancel
  end

  private

  # gRPC runs this in a thread of its own; its end is the half-close, after which the node answers what it has and ends
  # the stream.
  def send_all(requests, stream)
    while (request = requests.pop)
      stream << PublishStreamRequest.new(publish: request)
      sleep @pause
    end
  end

  def take(response, session)
    if response.opened
      @window = [MAX_UNANSWERED, response.opened.max_unanswered_batches].min
      @unanswered.each { |request| @requests << request }
    end
    response.results.each do |result|
      answered(result)
      session.worked
    end
    # What waits to be sent is sent on the next stream.
    @requests.clear.close if response.drain
    go_on unless @requests.closed?
  end

  def go_on
    @requests << next_batch while @next < @count && @unanswered.size < @window
    @requests.close if done?
  end

  def done?
    @next == @count && @unanswered.empty?
  end

  # The outcome of the oldest batch: answers of one channel come in the order of its batches.
  def answered(result)
    raise Refused, result.failure if result.failure

    stored = result.stored
    puts JSON.generate(first_offset: stored.first_offset, count: stored.count, duplicate: stored.duplicate)
    @unanswered.shift
  end

  def next_batch
    first = @next
    messages = (first...[first + @batch, @count].min).map { |number| message(number) }
    encoded = Batch.encode(Batch.new(messages: messages))
    request = PublishRequest.new(
      channel: @channel,
      batch: encoded,
      count: messages.size,
      crc32c: Crc32c.of(encoded),
      durability: :DURABILITY_QUORUM,
      producer_id: @producer_id,
      first_sequence: first
    )
    @unanswered << request
    @next += messages.size
    request
  end

  def message(number)
    Message.new(
      key: "#{@name}-#{number % 7}",
      data: "#{@name} #{number}".b + [0, 255, number % 256].pack("C*"),
      headers: { "number" => number.to_s, "note" => 'he said "grüezi"' },
      message_id: "#{@name}/#{number}"
    )
  end
end
