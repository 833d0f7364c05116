package main

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	ringpost "ringpost/v1"
)

const (
	subscriptionID = 1
	heartbeatMs    = 1000
	// A stream that was silent for three heartbeats is dead, whatever TCP says.
	silence = 3 * heartbeatMs * time.Millisecond
	// Credit in bytes; only messages are bounded here.
	plenty = 1 << 40
	ask    = 10 * time.Second
)

// Subscriber reads a channel, alone or as a member of a group.
type Subscriber struct {
	channel string
	group   string
	credit  uint64
	// Messages still to print, or in a group to settle.
	left uint64
	// Alone: where to go on.
	next uint64
	// Group: the offset to refuse once, and acks whose answer has not come.
	nack       *uint64
	unanswered map[uint64][]*ringpost.OffsetRange
	asked      uint64
}

func newSubscriber(a Arguments) *Subscriber {
	s := &Subscriber{channel: a["channel"], group: a["group"], credit: a.number("credit"), left: a.number("count")}
	if s.group == "" {
		s.next = a.number("from")
	}
	if _, ok := a["nack"]; ok {
		s.nack = proto.Uint64(a.number("nack"))
	}
	s.unanswered = map[uint64][]*ringpost.OffsetRange{}
	return s
}

// One stream, and what was delivered and granted on it.
type subscription struct {
	stream    ringpost.SubscriberService_SubscribeClient
	delivered uint64
	granted   uint64
}

func (s *Subscriber) Session(ctx context.Context, connection *grpc.ClientConn, worked func()) error {
	if err := s.settleUnanswered(ctx, connection); err != nil || s.left == 0 {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := time.AfterFunc(silence, cancel)
	defer watch.Stop()
	stream, err := ringpost.NewSubscriberServiceClient(connection).Subscribe(ctx)
	if err != nil {
		return err
	}
	open := &subscription{stream: stream, granted: s.credit}
	// An error of Send says only that the stream is over; Recv says why.
	_ = stream.Send(&ringpost.SubscribeRequest{Command: &ringpost.SubscribeRequest_Open{Open: s.opening()}})
	for s.left > 0 {
		response, err := stream.Recv()
		if err == io.EOF {
			return lost("the node ended the stream")
		}
		if err != nil {
			return err
		}
		watch.Reset(silence)
		if err := s.event(open, response, worked); err != nil {
			return err
		}
	}
	return s.finish(stream)
}

func (s *Subscriber) opening() *ringpost.OpenSubscription {
	open := &ringpost.OpenSubscription{
		SubscriptionId:      subscriptionID,
		Channel:             s.channel,
		Group:               s.group,
		Consumer:            "go",
		Credit:              &ringpost.Credit{Messages: s.credit, Bytes: plenty},
		HeartbeatIntervalMs: heartbeatMs,
	}
	if s.group == "" {
		open.Start = &ringpost.Start{At: &ringpost.Start_Offset{Offset: s.next}}
	}
	return open
}

func (s *Subscriber) event(open *subscription, response *ringpost.SubscribeResponse, worked func()) error {
	switch event := response.Event.(type) {
	case *ringpost.SubscribeResponse_Opened:
		worked()
	case *ringpost.SubscribeResponse_Deliver:
		return s.deliver(open, event.Deliver.Batches)
	case *ringpost.SubscribeResponse_Settled:
		return s.settled(event.Settled)
	case *ringpost.SubscribeResponse_Gap:
		s.next = event.Gap.Missing.Last + 1
	case *ringpost.SubscribeResponse_Drain:
		return lost("the node is draining")
	case *ringpost.SubscribeResponse_Closed:
		return Refused{event.Closed.GetFailure()}
	}
	return nil
}

func (s *Subscriber) deliver(open *subscription, batches []*ringpost.DeliveredBatch) error {
	for _, batch := range batches {
		messages, err := unpack(batch)
		if err != nil {
			return err
		}
		var done []*ringpost.OffsetRange
		for i, message := range messages {
			offset := batch.FirstOffset + uint64(i)
			if s.group == "" && s.left == 0 {
				break
			}
			printMessage(offset, batch.Attempt, message)
			s.next = offset + 1
			if s.group == "" {
				s.left--
			} else if s.nack != nil && *s.nack == offset {
				s.nack = nil
				s.settle(open, &ringpost.Settle{Ranges: only(offset), Action: &ringpost.Settle_Nack{Nack: &ringpost.Nack{}}})
			} else {
				done = extended(done, offset)
			}
		}
		if len(done) > 0 {
			s.settle(open, &ringpost.Settle{Ranges: done, Action: &ringpost.Settle_Ack{Ack: &ringpost.Ack{}}})
			s.unanswered[s.asked] = done
		}
		open.delivered += uint64(len(messages))
	}
	// Everything delivered is done with: as much again may come. Not for every message a grant.
	if total := open.delivered + s.credit; total-open.granted >= (s.credit+1)/2 {
		open.granted = total
		credit := &ringpost.GrantCredit{
			SubscriptionId: subscriptionID, Credit: &ringpost.Credit{Messages: total, Bytes: plenty},
		}
		_ = open.stream.Send(&ringpost.SubscribeRequest{Command: &ringpost.SubscribeRequest_Credit{Credit: credit}})
	}
	return nil
}

// unpack checks that a batch came as it was sent.
func unpack(batch *ringpost.DeliveredBatch) ([]*ringpost.Message, error) {
	if crc32.Checksum(batch.Batch, castagnoli) != batch.Crc32C {
		return nil, fmt.Errorf("the batch at offset %d does not match its CRC-32C", batch.FirstOffset)
	}
	var unpacked ringpost.Batch
	if err := proto.Unmarshal(batch.Batch, &unpacked); err != nil {
		return nil, fmt.Errorf("the batch at offset %d: %v", batch.FirstOffset, err)
	}
	if len(unpacked.Messages) != int(batch.Count) {
		found := len(unpacked.Messages)
		return nil, fmt.Errorf("the batch at offset %d holds %d messages, not %d", batch.FirstOffset, found, batch.Count)
	}
	return unpacked.Messages, nil
}

func printMessage(offset uint64, attempt uint32, message *ringpost.Message) {
	content, err := protojson.Marshal(message)
	if err != nil {
		fail(err)
	}
	fmt.Printf("{\"offset\": %d, \"attempt\": %d, \"message\": %s}\n", offset, attempt, content)
}

func (s *Subscriber) settle(open *subscription, settle *ringpost.Settle) {
	s.asked++
	settle.SubscriptionId, settle.Correlation = subscriptionID, s.asked
	_ = open.stream.Send(&ringpost.SubscribeRequest{Command: &ringpost.SubscribeRequest_Settle{Settle: settle}})
}

func (s *Subscriber) settled(settled *ringpost.Settled) error {
	if settled.Failure != nil {
		return Refused{settled.Failure}
	}
	if _, acked := s.unanswered[settled.Correlation]; acked {
		delete(s.unanswered, settled.Correlation)
		s.count(settled.Results)
	}
	return nil
}

// count notes what is settled for sure. Other outcomes mean: it was, or will be, delivered again.
func (s *Subscriber) count(results []*ringpost.SettledRange) {
	for _, result := range results {
		if result.Outcome != ringpost.Outcome_OUTCOME_DONE && result.Outcome != ringpost.Outcome_OUTCOME_ALREADY {
			continue
		}
		fmt.Printf("{\"acked\": [%d, %d]}\n", result.Range.First, result.Range.Last)
		if number := result.Range.Last - result.Range.First + 1; number < s.left {
			s.left -= number
		} else {
			s.left = 0
		}
	}
}

// settleUnanswered confirms work that was done when a stream broke: through any node, whoever holds the messages now.
func (s *Subscriber) settleUnanswered(ctx context.Context, connection *grpc.ClientConn) error {
	for correlation, ranges := range s.unanswered {
		ctx, cancel := context.WithTimeout(ctx, ask)
		answer, err := ringpost.NewGroupServiceClient(connection).Settle(ctx, &ringpost.SettleMessagesRequest{
			Channel: s.channel,
			Group:   s.group,
			Ranges:  ranges,
			Action:  &ringpost.SettleMessagesRequest_Ack{Ack: &ringpost.Ack{}},
		})
		cancel()
		if err != nil {
			return err
		}
		delete(s.unanswered, correlation)
		s.count(answer.Results)
	}
	return nil
}

// finish half-closes: the node releases what is leased, answers what it was asked, and ends the stream.
func (s *Subscriber) finish(stream ringpost.SubscriberService_SubscribeClient) error {
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		if _, err := stream.Recv(); err != nil {
			return nil // All is printed and settled; how the stream ends does not matter any more.
		}
	}
}

func only(offset uint64) []*ringpost.OffsetRange {
	return []*ringpost.OffsetRange{{First: offset, Last: offset}}
}

// extended adds an offset above all others to ascending ranges.
func extended(ranges []*ringpost.OffsetRange, offset uint64) []*ringpost.OffsetRange {
	if last := len(ranges) - 1; last >= 0 && ranges[last].Last+1 == offset {
		ranges[last].Last = offset
		return ranges
	}
	return append(ranges, only(offset)...)
}
