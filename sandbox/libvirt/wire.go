package libvirt

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"bj/sandbox"
	"bj/sandbox/hub"
)

// What travels over the control channel: JSON, one message a line. The machine
// speaks first, a greeting; then each request of bj is answered in turn.
const (
	controlPort = "bj.control"
	agentPort   = "bj.agent"

	// maxLine bounds one message, in bytes.
	maxLine = 16 << 20
	// replyDeadline bounds the wait for an answer: an emulated machine is slow.
	replyDeadline = 90 * time.Second
)

type greeting struct {
	Ready string // a nonce
}

type request struct {
	Method string
	Params json.RawMessage `json:",omitempty"`
}

type response struct {
	Error  string          `json:",omitempty"`
	Result json.RawMessage `json:",omitempty"`
}

// identity is what makes a machine this one and no other. Nothing runs on a
// machine before it has acknowledged it.
type identity struct {
	Name      string
	Index     int
	V4, V6    netip.Addr
	MachineID string
	Hosts     string // /etc/hosts
	Resolv    string // /etc/resolv.conf
	Memory    int64  // bytes, as asked for: a file system in it holds half of that
	Disk      int64  // bytes of memory above the root; 0 for the kernel's default
	Apart     bool   // units are kept apart: see agent.Options
	Whole     bool   // the root is on a disk that somebody else made
	Systemd   bool   // the root is booted by its systemd when the seal holds
	Layers    int    // disks that are laid over the root, the first on top
	MAC       string // of its link: a restored machine remembers another's
	Clock     int64  // Unix nanoseconds
	Entropy   []byte
}

// onWhole reports whether the root is that disk itself: nothing is laid over it.
func (id identity) onWhole() bool { return id.Whole && id.Layers == 0 }

// control is bj's end of a machine's control channel. It implements hub.Inner.
type control struct {
	machine string
	mu      sync.Mutex
	conn    net.Conn
	in      *bufio.Reader
	part    []byte // of a line that has not come to its end
	owed    int    // answers to come, in the order of their requests
	broken  error
}

// newControl waits for the machine's greeting.
func newControl(ctx context.Context, machine string, conn net.Conn) (*control, error) {
	c := resumedControl(machine, conn)
	defer c.until(ctx)()
	line, err := c.line()
	if err != nil {
		return nil, fmt.Errorf("waiting for it to boot: %w", cause(ctx, err))
	}
	var g greeting
	if err := json.Unmarshal(line, &g); err != nil || g.Ready == "" {
		return nil, fmt.Errorf("waiting for it to boot: it says %.80q", line)
	}
	return c, nil
}

// resumedControl is the channel of a machine that greeted whoever saved it.
func resumedControl(machine string, conn net.Conn) *control {
	return &control{machine: machine, conn: conn, in: bufio.NewReader(conn)}
}

// until makes the end of ctx end what waits for the channel. What it returns must
// be called when nothing does any more.
func (c *control) until(ctx context.Context) (done func()) {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetDeadline(time.Unix(1, 0))
		close(ended)
	})
	return func() {
		if !stop() {
			<-ended // or it would end the next one's wait
		}
	}
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// line returns the next line. What was read of it before an error is kept.
func (c *control) line() ([]byte, error) {
	for {
		data, err := c.in.ReadSlice('\n')
		c.part = append(c.part, data...)
		switch {
		case err == nil:
			line := c.part
			c.part = nil
			return line, nil
		case len(c.part) > maxLine:
			return nil, fmt.Errorf("reading what %s says: a line of more than %d bytes", c.machine, maxLine)
		case errors.Is(err, io.EOF):
			return nil, hub.ErrGone
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// call sends a request and waits for its answer. If ctx ends before, the answer
// is owed, and passed over by the next call. Any other error of the channel ends
// it.
func (c *control) call(ctx context.Context, method string, params, result any) error {
	body, err := json.Marshal(params)
	if err != nil {
		return err
	}
	msg, err := json.Marshal(request{Method: method, Params: body})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	if ctx.Err() != nil {
		return fmt.Errorf("asking %s for %s: %w", c.machine, method, context.Cause(ctx))
	}
	c.conn.SetDeadline(time.Now().Add(replyDeadline))
	defer c.until(ctx)()
	var line []byte
	asked := false
	if _, err = c.conn.Write(append(msg, '\n')); err == nil {
		asked = true
		for c.owed++; c.owed > 0 && err == nil; {
			if line, err = c.line(); err == nil {
				c.owed--
			}
		}
	}
	if err != nil {
		var timeout net.Error
		late := errors.As(err, &timeout) && timeout.Timeout()
		if !late {
			err = hub.ErrGone
		}
		err = fmt.Errorf("asking %s for %s: %w", c.machine, method, cause(ctx, err))
		if late && asked && ctx.Err() != nil {
			return err
		}
		c.broken = err
		c.conn.Close()
		return err
	}
	var r response
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("asking %s for %s: %w", c.machine, method, err)
	}
	if r.Error != "" {
		return fmt.Errorf("asking %s for %s: it says: %s", c.machine, method, r.Error)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(r.Result, result)
}

func (c *control) Seal(ctx context.Context, p sandbox.Policy) error {
	return c.call(ctx, "seal", p, nil)
}

func (c *control) Expect(ctx context.Context, keys []hub.CanaryKey) error {
	return c.call(ctx, "expect", keys, nil)
}

// Flows returns what the machine itself saw. It can speak of itself only, and
// of its inside: what it says else is root's of that machine.
func (c *control) Flows(ctx context.Context) (f hub.Flows, err error) {
	err = c.call(ctx, "flows", struct{}{}, &f)
	for i := range f.Blocked {
		f.Blocked[i].Machine = c.machine
	}
	for i := range f.Seen {
		f.Seen[i].Machine = c.machine
	}
	return f, err
}

func (c *control) Rules(ctx context.Context) (text string, err error) {
	err = c.call(ctx, "rules", struct{}{}, &text)
	return text, err
}

var _ hub.Inner = (*control)(nil)
