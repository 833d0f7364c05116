#!/usr/bin/env ruby
# frozen_string_literal: true

# A client of Ringpost, written from the .proto files. README.md in the folder above says how it is called.

$LOAD_PATH.unshift(File.join(__dir__, "target"), File.join(__dir__, "lib"))
require "publisher"
require "session"
require "subscriber"

$stdout.sync = true
mode, *rest = ARGV
options = rest.each_slice(2).to_h { |name, value| [name.delete_prefix("--"), value] }
client = { "publish" => Publisher, "subscribe" => Subscriber, "work" => Subscriber }.fetch(mode).new(options)
begin
  Session.run(options.fetch("address").split(",")) { |session| client.work(session) }
rescue GRPC::BadStatus, Refused, Damaged => e
  abort e.message
end
