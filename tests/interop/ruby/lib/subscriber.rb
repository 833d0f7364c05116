# frozen_string_literal: true

require "crc32c"
require "session"

# Reads a channel, alone or as a member of a group.
class Subscriber
  include Ringpost::V1

  SUBSCRIPTION_ID = 1
  HEARTBEAT_MS = 1000
  # A stream that was silent for three heartbeats is dead, whatever TCP says.
  SILENCE = 3 * HEARTBEAT_MS / 1000.0
  # Credit in bytes; only messages are bounded here.
  PLENTY = 1 << 40
  ASK = 10

  def initialize(options)
    @channel = options.fetch("channel")
    @group = options.fetch("group", "")
    @credit = Integer(options.fetch("credit"))
    # Messages still to print, or in a group to settle.
    @left = Integer(options.fetch("count"))
    # Alone: where to go on.
    @next = Integer(options.fetch("from", 0))
    # Group: the offset to refuse once, and ranges whose ack has no answer yet, by correlation.
    @nack = options["nack"] && Integer(options["nack"])
    @unanswered = {}
    @correlation = 0
  end

  def work(session)
    settle_unanswered(session)
    return if @left.zero?

    @requests = Queue.new
    @delivered = 0
    @granted = @credit
    @requests << SubscribeRequest.new(open: opening)
    requests = Enumerator.new { |stream| send_all(@requests, stream) }
    call = session.subscriber.subscribe(requests, return_op: true, metadata: session.metadata)
    read(call, session)
  ensure
    # Ends the thread that sends.
    @requests&.clear&.close
    call&.cancel
  end

  private

  def alone?
    @group.empty?
  end

  # gRPC runs this in a thread of its own; its end is the half-close.
  def send_all(requests, stream)
    while (request = requests.pop)
      stream << request
    end
  end

  def read(call, session)
    @heard = now
    watch = Thread.new do
      sleep 0.1 while now - @heard < SILENCE
      call.cancel
    end
    call.execute.each do |response|
      @heard = now
      take(response, session)
      # Half-close: the node releases what is leased, answers what it was asked, and ends the stream.
      @requests.close if @left.zero?
    end
  ensure
    watch.kill
  end

  def opening
    OpenSubscription.new(
      subscription_id: SUBSCRIPTION_ID,
      channel: @channel,
      group: @group,
      consumer: "ruby",
      start: (Start.new(offset: @next) if alone?),
      credit: Credit.new(messages: @credit, bytes: PLENTY),
      heartbeat_interval_ms: HEARTBEAT_MS
    )
  end

  def take(response, session)
    case response.event
    when :opened then session.worked
    when :deliver then response.deliver.batches.each { |batch| deliver(batch) } && grant
    when :settled then settled(response.settled)
    when :gap then @next = response.gap.missing.last + 1
    when :drain then raise Lost, "the node is draining"
    when :closed then raise Refused, response.closed.failure if @left.positive?
    end
  end

  def deliver(batch)
    done = []
    unpack(batch).each.with_index(batch.first_offset) do |message, offset|
      break if alone? && @left.zero?

      puts %({"offset": #{offset}, "attempt": #{batch.attempt}, "message": #{Message.encode_json(message)}})
      @next = offset + 1
      if alone?
        @left -= 1
      elsif offset == @nack
        @nack = nil
        settle(only(offset), nack: Nack.new)
      else
        extend_ranges(done, offset)
      end
    end
    @delivered += batch.count
    settle(done, ack: Ack.new) unless done.empty?
  end

  # Checks that a batch came as it was sent.
  def unpack(batch)
    raise Damaged, "the batch at offset #{batch.first_offset} does not match its CRC-32C" unless
      Crc32c.of(batch.batch) == batch.crc32c

    messages = Batch.decode(batch.batch).messages.to_a
    raise Damaged, "the batch at offset #{batch.first_offset} holds #{messages.size} messages" unless
      messages.size == batch.count

    messages
  end

  # Everything delivered is done with: as much again may come. Not for every message a grant.
  def grant
    total = @delivered + @credit
    return if total - @granted < (@credit + 1) / 2

    @granted = total
    credit = Credit.new(messages: total, bytes: PLENTY)
    say(credit: GrantCredit.new(subscription_id: SUBSCRIPTION_ID, credit: credit))
  end

  def settle(ranges, action)
    @correlation += 1
    @unanswered[@correlation] = ranges if action.key?(:ack)
    say(settle: Settle.new(subscription_id: SUBSCRIPTION_ID, correlation: @correlation, ranges: ranges, **action))
  end

  def say(command)
    @requests << SubscribeRequest.new(**command) unless @requests.closed?
  end

  def settled(answer)
    raise Refused, answer.failure if answer.failure

    count(answer.results) if @unanswered.delete(answer.correlation)
  end

  # Notes what is settled for sure. Other outcomes mean: it was, or will be, delivered again.
  def count(results)
    results.each do |result|
      next unless %i[OUTCOME_DONE OUTCOME_ALREADY].include?(result.outcome)

      first, last = result.range.first, result.range.last
      puts %({"acked": [#{first}, #{last}]})
      @left = [@left - (last - first + 1), 0].max
    end
  end

  # Confirms work that was done when a stream broke: through any node, whoever holds the messages now.
  def settle_unanswered(session)
    @unanswered.keys.each do |correlation|
      request = SettleMessagesRequest.new(
        channel: @channel, group: @group, ranges: @unanswered[correlation], ack: Ack.new
      )
      answer = session.groups.settle(request, deadline: Time.now + ASK, metadata: session.metadata)
      @unanswered.delete(correlation)
      count(answer.results)
    end
  end

  def only(offset)
    [OffsetRange.new(first: offset, last: offset)]
  end

  # Adds an offset above all others to ascending ranges.
  def extend_ranges(ranges, offset)
    if ranges.last&.last == offset - 1
      ranges.last.last = offset
    else
      ranges.concat(only(offset))
    end
  end

  def now
    Process.clock_gettime(Process::CLOCK_MONOTONIC)
  end
end
