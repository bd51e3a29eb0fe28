package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"bj/sandbox"
)

// ErrLost is in every error that means that the stream has ended without its
// last message: what the machine did since is not known.
var ErrLost = errors.New("the machine is lost")

// Client is the host's end of a machine's stream. Its methods may be called
// from any goroutine.
type Client struct {
	conn  io.ReadWriteCloser
	queue chan []byte // whole frames, for the writing goroutine
	lost  chan struct{}

	mu        sync.Mutex
	last      uint32                // id that was used last
	err       error                 // why lost is closed
	quit      bool                  // bye was said
	replies   map[uint32]chan reply // of capacity 1
	processes map[uint32]*process
}

// NewClient waits for the guest's hello on conn, which is the client's from
// then on: it is closed by Close, when ctx is done before the hello came, and
// when the machine is lost.
func NewClient(ctx context.Context, conn io.ReadWriteCloser) (*Client, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	r := bufio.NewReaderSize(conn, 2*(chunk+headerSize))
	h, err := readHello(r)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("waiting for the agent: %w", err)
	}
	c := &Client{
		conn:      conn,
		queue:     make(chan []byte, 16),
		lost:      make(chan struct{}),
		replies:   map[uint32]chan reply{},
		processes: map[uint32]*process{},
	}
	attach, err := encode(kindAttach, 0, h)
	if err != nil {
		conn.Close()
		return nil, err
	}
	c.queue <- attach
	go c.write()
	go c.read(r)
	return c, nil
}

func readHello(r io.Reader) (hello, error) {
	f, err := readFrame(r)
	if err != nil {
		return hello{}, noEOF(err)
	}
	if f.kind != kindHello {
		return hello{}, fmt.Errorf("%w: kind %d instead of a hello", errFrame, f.kind)
	}
	h, err := decode[hello](f)
	if err == nil && h.Protocol != protocol {
		err = fmt.Errorf("the agent speaks protocol %d, not %d", h.Protocol, protocol)
	}
	return h, err
}

// Lost is closed when the stream has ended, in whatever way.
func (c *Client) Lost() <-chan struct{} { return c.lost }

// Err says why Lost is closed; nil after an orderly Close.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.quit {
		return nil
	}
	return c.err
}

// Close makes the guest kill everything and end, waits for its last message
// until ctx is done, and closes the stream. Without that message it returns an
// error. It may be called more than once.
func (c *Client) Close(ctx context.Context) error {
	defer c.conn.Close()
	if b, err := encode(kindQuit, 0, nil); err == nil && c.post(ctx, b) == nil {
		select {
		case <-c.lost:
		case <-ctx.Done():
			c.fail(ctx.Err())
		}
	}
	c.fail(os.ErrClosed)
	return c.Err()
}

// Start implements sandbox.Machine. Output is called from a goroutine of this
// command; while it does not return, the command blocks after some 256 KiB of
// output, and no other is held up.
func (c *Client) Start(ctx context.Context, cmd sandbox.Command, output func(sandbox.Stream, []byte)) (sandbox.Process, error) {
	m := start{Script: []byte(cmd.Script), User: cmd.User, Unit: cmd.Unit, Input: cmd.Input, Terminal: cmd.Terminal}
	for _, a := range cmd.Argv {
		m.Argv = append(m.Argv, []byte(a))
	}
	for name, value := range cmd.Env {
		if strings.ContainsRune(name+value, 0) {
			return nil, fmt.Errorf("starting command: the value of $%s holds a zero byte, which no environment can", name)
		}
		m.Env = append(m.Env, []byte(name+"="+value))
	}
	if output == nil {
		output = func(sandbox.Stream, []byte) {}
	}
	p := newProcess(c, output)
	r, err := c.call(ctx, kindStart, m, func(id uint32) {
		p.id = id
		c.processes[id] = p
	})
	if err != nil {
		c.mu.Lock()
		delete(c.processes, p.id)
		c.mu.Unlock()
		p.fail(err)
		// It may have started all the same, if ctx was done first.
		if r == nil {
			c.abandon(p)
		}
		return nil, fmt.Errorf("starting command: %w", err)
	}
	go p.deliver()
	return p, nil
}

// abandon kills a command of which nobody waits to hear.
func (c *Client) abandon(p *process) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), killDeadline)
		defer cancel()
		c.call(ctx, kindKill, target{Command: p.id}, nil)
	}()
}

// KillUnit implements sandbox.Machine. It returns when they are gone.
func (c *Client) KillUnit(ctx context.Context, unit string) (int, error) {
	r, err := c.call(ctx, kindKillUnit, target{Unit: unit}, nil)
	if err != nil {
		return 0, fmt.Errorf("killing unit %s: %w", unit, err)
	}
	return r.Count, nil
}

// Put writes f.Content to f.Path, with the folders above it; the file appears
// when it is whole. It takes no Source. With f.Absent it takes away what matches.
func (c *Client) Put(ctx context.Context, f sandbox.File) error {
	mode := f.Mode
	if mode == 0 {
		mode = 0o644
	}
	if f.Source != "" {
		return fmt.Errorf("putting %s: it is a file of the host", f.Path)
	}
	id, replies, err := c.request(nil)
	if err != nil {
		return fmt.Errorf("putting %s: %w", f.Path, err)
	}
	defer c.forget(id)
	b, err := encode(kindPut, id, put{Path: f.Path, Mode: mode, Size: int64(len(f.Content)), Absent: f.Absent})
	for rest := f.Content; err == nil; {
		if err = c.post(ctx, b); err != nil || len(rest) == 0 {
			break
		}
		n := min(len(rest), chunk)
		b = make([]byte, headerSize+n)
		putHeader(b, kindData, id, n)
		copy(b[headerSize:], rest)
		rest = rest[n:]
	}
	if err == nil {
		_, err = c.await(ctx, replies)
	}
	if err != nil {
		return fmt.Errorf("putting %s: %w", f.Path, err)
	}
	return nil
}

// Probe tries ps from inside, and returns at once with how far each got. The
// sockets stay open until Probed or the next Probe.
func (c *Client) Probe(ctx context.Context, ps []Probe) ([]Outcome, error) {
	return c.outcomes(ctx, kindProbe, append([]Probe{}, ps...))
}

// Probed looks at the probes of the last Probe again: what has come back?
func (c *Client) Probed(ctx context.Context) ([]Outcome, error) {
	return c.outcomes(ctx, kindProbed, nil)
}

func (c *Client) outcomes(ctx context.Context, k kind, m any) ([]Outcome, error) {
	r, err := c.call(ctx, k, m, nil)
	if err != nil {
		return nil, fmt.Errorf("probing: %w", err)
	}
	return r.Outcomes, nil
}

// Tried returns what commands have tried to reach so far, in order of first
// sight, and what listens now: see Attribute.
func (c *Client) Tried(ctx context.Context) (Tried, error) {
	r, err := c.call(ctx, kindTried, nil, nil)
	if err != nil {
		return Tried{}, fmt.Errorf("asking what was tried: %w", err)
	}
	if r.Tried == nil {
		return Tried{}, fmt.Errorf("asking what was tried: %w: no answer", errFrame)
	}
	return *r.Tried, nil
}

// request reserves an id, under the lock in which register is called.
func (c *Client) request(register func(id uint32)) (uint32, chan reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.last++
	replies := make(chan reply, 1)
	c.replies[c.last] = replies
	if register != nil {
		register(c.last)
	}
	return c.last, replies, nil
}

func (c *Client) forget(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.replies, id)
}

// call sends a request and waits for its reply, which is nil if none came.
func (c *Client) call(ctx context.Context, k kind, m any, register func(id uint32)) (*reply, error) {
	id, replies, err := c.request(register)
	if err != nil {
		return nil, err
	}
	defer c.forget(id)
	b, err := encode(k, id, m)
	if err != nil {
		return &reply{}, err
	}
	if err := c.post(ctx, b); err != nil {
		return nil, err
	}
	return c.await(ctx, replies)
}

func (c *Client) await(ctx context.Context, replies <-chan reply) (*reply, error) {
	var r reply
	select {
	case r = <-replies:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.lost:
		select {
		case r = <-replies: // it was the last thing that came
		default:
			return nil, c.reason()
		}
	}
	if r.Error != "" && r.Command {
		return &r, &commandError{r.Error}
	}
	if r.Error != "" {
		return &r, errors.New(r.Error)
	}
	return &r, nil
}

// commandError is a sandbox.ErrCommand with the guest's words.
type commandError struct{ text string }

func (e *commandError) Error() string { return e.text }
func (e *commandError) Unwrap() error { return sandbox.ErrCommand }

// reason is why the stream has ended, for those who still wanted something.
func (c *Client) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// post gives a frame to the writing goroutine. A context that is done leaves
// the stream whole: a frame is sent or not.
func (c *Client) post(ctx context.Context, b []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case c.queue <- b:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.lost:
		return c.reason()
	}
}

func (c *Client) write() {
	for {
		select {
		case b := <-c.queue:
			if _, err := c.conn.Write(b); err != nil {
				c.fail(fmt.Errorf("writing to the agent: %w", err))
				return
			}
		case <-c.lost:
			return
		}
	}
}

// read takes the stream apart. It never waits for anything but the stream.
func (c *Client) read(r io.Reader) {
	for {
		f, err := readFrame(r)
		if err != nil {
			c.fail(fmt.Errorf("reading from the agent: %w", noEOF(err)))
			return
		}
		if f.kind == kindBye {
			c.mu.Lock()
			c.quit = true
			c.mu.Unlock()
			c.fail(errors.New("the agent has said bye"))
			return
		}
		if err := c.dispatch(f); err != nil {
			c.fail(err)
			return
		}
	}
}

func (c *Client) dispatch(f frame) error {
	c.mu.Lock()
	p := c.processes[f.id]
	replies := c.replies[f.id]
	if f.kind == kindEnd {
		delete(c.processes, f.id)
	}
	c.mu.Unlock()
	switch f.kind {
	case kindReply:
		r, err := decode[reply](f)
		if err != nil {
			return err
		}
		if replies != nil { // else nobody waits any more
			select {
			case replies <- r:
			default:
				return fmt.Errorf("%w: a second reply to request %d", errFrame, f.id)
			}
		}
		return nil
	case kindStdout, kindStderr:
		if p != nil {
			return p.output(f)
		}
		// Of a command that was given up. The guest needs no credit: it is
		// killed, and its output is thrown away there.
		return nil
	case kindExit:
		e, err := decode[exit](f)
		if err == nil && p != nil {
			err = p.exited(sandbox.Exit{Code: e.Code, Signal: e.Signal, OOM: e.OOM})
		}
		return err
	case kindEnd:
		if p != nil {
			p.ended()
		}
		return nil
	}
	return fmt.Errorf("%w: kind %d is not for the host", errFrame, f.kind)
}

// fail ends everything that waits. Only the first call counts.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = fmt.Errorf("%w: %w", ErrLost, err)
	processes := c.processes
	c.processes = map[uint32]*process{}
	c.mu.Unlock()
	close(c.lost)
	c.conn.Close()
	for _, p := range processes {
		p.fail(c.err)
	}
}
