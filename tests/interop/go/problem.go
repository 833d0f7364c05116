package main

import (
	"fmt"
	"math/rand"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ringpost "ringpost/v1"
)

// Refused is what the broker says inside a stream, where a status would end everything.
type Refused struct {
	*ringpost.Failure
}

func (r Refused) Error() string {
	return fmt.Sprintf("%s: %s", r.Reason, r.Message)
}

// Problem says what to do about an error.
type Problem struct {
	// Trying again cannot mend it.
	definite   bool
	retryAfter time.Duration
}

func problemOf(err error) Problem {
	if refused, ok := err.(Refused); ok {
		retryAfter := time.Duration(refused.RetryAfterMs) * time.Millisecond
		return Problem{isDefinite(codes.Code(refused.Code)) && retryAfter == 0, retryAfter}
	}
	// What is no status is an error of our own, such as a delivery that is damaged: status.Code says Unknown.
	if _, ok := status.FromError(err); !ok {
		return Problem{definite: true}
	}
	retryAfter := retryInfo(status.Convert(err))
	return Problem{isDefinite(status.Code(err)) && retryAfter == 0, retryAfter}
}

// A definite error: nothing was changed, and the same request would be answered in the same way.
func isDefinite(code codes.Code) bool {
	switch code {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.OutOfRange, codes.FailedPrecondition,
		codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented, codes.ResourceExhausted, codes.DataLoss:
		return true
	}
	return false
}

// retryInfo is what the details of a status say of trying again; 0: nothing.
func retryInfo(told *status.Status) time.Duration {
	for _, detail := range told.Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			return time.Duration(retry.RetryDelay.Seconds)*time.Second + time.Duration(retry.RetryDelay.Nanos)
		}
	}
	return 0
}

func jittered(pause time.Duration) time.Duration {
	return pause/2 + time.Duration(rand.Int63n(int64(pause/2)))
}

// lost says that a stream is to be left for another one.
func lost(sentence string) error {
	return status.Error(codes.Unavailable, sentence)
}
