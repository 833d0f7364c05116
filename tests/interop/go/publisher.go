package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	ringpost "ringpost/v1"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// At most so many batches of a producer may be unanswered on one channel.
const maxUnanswered = 64

// Publisher is one idempotent producer on one channel. A batch keeps its numbers however often it is sent, so that the
// broker stores it once. There is one way to recover: leave the stream, and send everything unanswered again, in order.
type Publisher struct {
	channel    string
	name       string
	count      uint64
	batch      uint64
	pause      time.Duration
	producerID uint64
	// Number of the next message that was never sent.
	next       uint64
	unanswered []*ringpost.PublishRequest
}

func newPublisher(a Arguments) *Publisher {
	p := &Publisher{channel: a["channel"], name: a["producer"], count: a.number("count"), batch: a.number("batch")}
	if _, ok := a["pause-ms"]; ok {
		p.pause = time.Duration(a.number("pause-ms")) * time.Millisecond
	}
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		fail(err)
	}
	p.producerID = binary.BigEndian.Uint64(random[:]) | 1
	return p
}

func (p *Publisher) Session(ctx context.Context, connection *grpc.ClientConn, worked func()) error {
	stream, err := ringpost.NewPublisherServiceClient(connection).PublishStream(ctx)
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	window := maxUnanswered
	if limit := int(first.GetOpened().GetMaxUnansweredBatches()); limit < window {
		window = limit
	}
	answers, ended := receive(ctx, stream)
	sent, leaving := 0, false
	pacer := time.NewTimer(0)
	defer pacer.Stop()
	for {
		more := p.next < p.count || sent < len(p.unanswered)
		if sent == 0 && (leaving || !more) {
			return p.finish(stream, ended, more)
		}
		var ready <-chan time.Time
		if more && !leaving && sent < window {
			ready = pacer.C
		}
		select {
		case <-ready:
			if sent == len(p.unanswered) {
				p.unanswered = append(p.unanswered, p.nextBatch())
			}
			request := &ringpost.PublishStreamRequest_Publish{Publish: p.unanswered[sent]}
			sent++
			// An error of Send says only that the stream is over; Recv says why.
			_ = stream.Send(&ringpost.PublishStreamRequest{Command: request})
			pacer.Reset(p.pause)
		case answer := <-answers:
			leaving = leaving || answer.Drain != nil
			for _, result := range answer.Results {
				if err := p.answered(result); err != nil {
					return err
				}
				sent--
				worked()
			}
		case err := <-ended:
			return err
		}
	}
}

// finish half-closes: every answer is there, the node ends the stream.
func (p *Publisher) finish(stream ringpost.PublisherService_PublishStreamClient, ended <-chan error, more bool) error {
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if more {
		return lost("the node is draining")
	}
	if err := <-ended; err != io.EOF {
		return err
	}
	return nil
}

// answered takes the outcome of the oldest batch: answers of one channel come in the order of its batches.
func (p *Publisher) answered(result *ringpost.PublishResult) error {
	if failure := result.GetFailure(); failure != nil {
		return Refused{failure}
	}
	stored := result.GetStored()
	fmt.Printf("{\"first_offset\": %d, \"count\": %d, \"duplicate\": %t}\n",
		stored.FirstOffset, stored.Count, stored.Duplicate)
	p.unanswered = p.unanswered[1:]
	return nil
}

func (p *Publisher) nextBatch() *ringpost.PublishRequest {
	first := p.next
	var messages []*ringpost.Message
	for ; p.next < p.count && p.next < first+p.batch; p.next++ {
		messages = append(messages, p.message(p.next))
	}
	encoded, err := proto.Marshal(&ringpost.Batch{Messages: messages})
	if err != nil {
		fail(err)
	}
	return &ringpost.PublishRequest{
		Channel:       p.channel,
		Batch:         encoded,
		Count:         uint32(len(messages)),
		Crc32C:        proto.Uint32(crc32.Checksum(encoded, castagnoli)),
		Durability:    ringpost.Durability_DURABILITY_QUORUM,
		ProducerId:    p.producerID,
		FirstSequence: first,
	}
}

func (p *Publisher) message(number uint64) *ringpost.Message {
	return &ringpost.Message{
		Key:       []byte(fmt.Sprintf("%s-%d", p.name, number%7)),
		Data:      append([]byte(fmt.Sprintf("%s %d", p.name, number)), 0, 255, byte(number)),
		Headers:   map[string]string{"number": fmt.Sprint(number), "note": `he said "grüezi"`},
		MessageId: fmt.Sprintf("%s/%d", p.name, number),
	}
}

// receive hands on what comes until the stream ends.
func receive(ctx context.Context, stream ringpost.PublisherService_PublishStreamClient) (
	<-chan *ringpost.PublishStreamResponse, <-chan error,
) {
	answers, ended := make(chan *ringpost.PublishStreamResponse), make(chan error, 1)
	go func() {
		for {
			answer, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case answers <- answer:
			case <-ctx.Done():
				return
			}
		}
	}()
	return answers, ended
}
