package libvirt

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"bj/sandbox/hub"
)

// TestControlOutlivesAnImpatientCall holds that a call that was given up does not
// cost the machine its channel, and that its answer is nobody else's: a recipe
// that fails stops asking for what was blocked, and then its seal is tried.
func TestControlOutlivesAnImpatientCall(t *testing.T) {
	a, b, err := hub.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := conn(t, a), conn(t, b)
	defer theirs.Close()
	asked, answer := make(chan string), make(chan struct{})
	go func() {
		for in := bufio.NewScanner(theirs); in.Scan(); {
			var r request
			json.Unmarshal(in.Bytes(), &r)
			asked <- r.Method
			<-answer
			// In two pieces, of which the first may come to somebody impatient.
			text := fmt.Sprintf("{\"Result\": %q}\n", r.Method)
			theirs.Write([]byte(text[:5]))
			theirs.Write([]byte(text[5:]))
		}
	}()
	c := resumedControl("m", ours)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	if err := c.call(ctx, "first", nil, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("a call that was given up: %v", err)
	}
	if err := c.call(ctx, "none", nil, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("a call after its end: %v", err)
	}
	go func() { answer <- struct{}{}; <-asked; answer <- struct{}{} }()
	var got string
	if err := c.call(t.Context(), "second", nil, &got); err != nil || got != "second" {
		t.Fatalf("the call after it was answered %q, %v", got, err)
	}
	theirs.Close()
	if err := c.call(t.Context(), "third", nil, nil); !errors.Is(err, hub.ErrGone) {
		t.Errorf("a call to a machine that is gone: %v", err)
	}
}

func conn(t *testing.T, f *os.File) net.Conn {
	t.Helper()
	c, err := hub.UnixConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
