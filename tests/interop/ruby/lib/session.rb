# frozen_string_literal: true

require "ringpost/v1/group_services_pb"
require "ringpost/v1/publish_services_pb"
require "ringpost/v1/subscribe_services_pb"

# What the broker says inside a stream, where a status would end everything.
class Refused < StandardError
  attr_reader :code, :retry_after

  def initialize(failure)
    super("#{failure.reason}: #{failure.message}")
    @code = failure.code
    @retry_after = failure.retry_after_ms / 1000.0
  end
end

# A stream is to be left for another one.
class Lost < StandardError; end

# A delivery does not match its checksum.
class Damaged < StandardError; end

# One connection to one node; any node serves any channel.
class Session
  FIRST_PAUSE = 0.05
  LAST_PAUSE = 2.0
  # A definite error: nothing was changed, and the same request would be answered in the same way.
  DEFINITE = [
    GRPC::Core::StatusCodes::INVALID_ARGUMENT, GRPC::Core::StatusCodes::NOT_FOUND,
    GRPC::Core::StatusCodes::ALREADY_EXISTS, GRPC::Core::StatusCodes::OUT_OF_RANGE,
    GRPC::Core::StatusCodes::FAILED_PRECONDITION, GRPC::Core::StatusCodes::PERMISSION_DENIED,
    GRPC::Core::StatusCodes::UNAUTHENTICATED, GRPC::Core::StatusCodes::UNIMPLEMENTED,
    GRPC::Core::StatusCodes::RESOURCE_EXHAUSTED, GRPC::Core::StatusCodes::DATA_LOSS
  ].freeze
  CHANNEL = {
    # Each session has a connection of its own.
    "grpc.use_local_subchannel_pool" => 1,
    # A node may be set to take messages above gRPC's usual bound.
    "grpc.max_receive_message_length" => 64 << 20,
    # A node that is frozen or cut off is noticed even while nothing is to be said.
    "grpc.keepalive_time_ms" => 30_000,
    "grpc.keepalive_timeout_ms" => 10_000
  }.freeze

  attr_reader :publisher, :subscriber, :groups, :metadata

  # Yields session after session, each at the next address, until the block returns. Pauses between them grow until one
  # of them has worked. Raises what trying again cannot mend.
  def self.run(addresses)
    pause = FIRST_PAUSE
    addresses.cycle do |address|
      session = new(address) { pause = FIRST_PAUSE }
      begin
        return yield(session)
      rescue GRPC::BadStatus, Refused, Lost => e
        raise if definite?(e)

        warn "trying again: #{e.message}"
        sleep [e.is_a?(Refused) ? e.retry_after : 0, pause * rand(0.5..1.0)].max
        pause = [pause * 2, LAST_PAUSE].min
      ensure
        session.close
      end
    end
  end

  def self.definite?(error)
    case error
    when Lost then false
    when Refused then DEFINITE.include?(error.code) && error.retry_after.zero?
    # Of RESOURCE_EXHAUSTED a status says in its details (google.rpc.RetryInfo) whether to come back, and when. Here they
    # are not read: the next pause will do.
    when GRPC::ResourceExhausted then false
    else DEFINITE.include?(error.code)
    end
  end

  def initialize(address, &worked)
    @worked = worked
    ca = ENV.fetch("RINGPOST_CA", nil)
    credentials = ca ? GRPC::Core::ChannelCredentials.new(File.read(ca)) : :this_channel_is_insecure
    token = ENV.fetch("RINGPOST_TOKEN", nil)
    @metadata = token ? { "authorization" => "Bearer #{token}" } : {}
    @channel = GRPC::Core::Channel.new(address, CHANNEL, credentials)
    services = [Ringpost::V1::PublisherService, Ringpost::V1::SubscriberService, Ringpost::V1::GroupService]
    @publisher, @subscriber, @groups = services.map do |service|
      service::Stub.new(address, credentials, channel_override: @channel)
    end
  end

  # The node does its work: the next pause is a short one.
  def worked
    @worked.call
  end

  def close
    @channel.close
  end
end
