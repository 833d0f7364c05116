// A client of Ringpost, written from the .proto files. README.md in the folder above says how it is called.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Arguments are --name value pairs behind the mode.
type Arguments map[string]string

func (a Arguments) number(name string) uint64 {
	value, err := strconv.ParseUint(a[name], 10, 64)
	if err != nil {
		fail(fmt.Errorf("--%s: %v", name, err))
	}
	return value
}

func main() {
	if len(os.Args) < 2 || len(os.Args)%2 != 0 {
		fail(fmt.Errorf("usage: client publish|subscribe|work --name value ..."))
	}
	arguments := Arguments{}
	for i := 2; i < len(os.Args); i += 2 {
		arguments[strings.TrimPrefix(os.Args[i], "--")] = os.Args[i+1]
	}
	cluster := &Cluster{addresses: strings.Split(arguments["address"], ",")}
	var client Client
	switch os.Args[1] {
	case "publish":
		client = newPublisher(arguments)
	case "subscribe", "work":
		client = newSubscriber(arguments)
	default:
		fail(fmt.Errorf("no mode %q", os.Args[1]))
	}
	if err := cluster.Run(client); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// Client does its work over one connection. What was not confirmed when that breaks, the next Session does again.
type Client interface {
	// Session returns nil when all is done. It calls worked when the node does its work.
	Session(ctx context.Context, connection *grpc.ClientConn, worked func()) error
}

// Cluster knows the nodes' addresses; any of them serves any channel.
type Cluster struct {
	addresses []string
}

const (
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
)

// Run opens session after session, each at the next address, with pauses that grow until one of them works.
func (c *Cluster) Run(client Client) error {
	pause := firstPause
	for attempt := 0; ; attempt++ {
		err := c.session(client, c.addresses[attempt%len(c.addresses)], func() { pause = firstPause })
		if err == nil {
			return nil
		}
		problem := problemOf(err)
		if problem.definite {
			return err
		}
		fmt.Fprintln(os.Stderr, "trying again:", err)
		if problem.retryAfter > pause {
			time.Sleep(problem.retryAfter)
		} else {
			time.Sleep(jittered(pause))
		}
		if pause *= 2; pause > lastPause {
			pause = lastPause
		}
	}
}

func (c *Cluster) session(client Client, address string, worked func()) error {
	connection, err := grpc.Dial(address, options()...)
	if err != nil {
		return err
	}
	defer connection.Close()
	// Ends the stream, whatever way the session is left.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	return client.Session(ctx, connection, worked)
}

func options() []grpc.DialOption {
	options := []grpc.DialOption{
		// A node that is frozen or cut off is noticed even while nothing is to be said.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// A node may be set to take messages above gRPC's usual bound.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64 << 20)),
	}
	if ca := os.Getenv("RINGPOST_CA"); ca != "" {
		trusted, err := credentials.NewClientTLSFromFile(ca, "")
		if err != nil {
			fail(err)
		}
		options = append(options, grpc.WithTransportCredentials(trusted))
	} else {
		options = append(options, grpc.WithInsecure())
	}
	if token := os.Getenv("RINGPOST_TOKEN"); token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(token)))
	}
	return options
}

// A token that goes with every call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (b bearer) RequireTransportSecurity() bool {
	return false
}
