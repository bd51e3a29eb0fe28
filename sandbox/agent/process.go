package agent

import (
	"context"
	"fmt"
	"sync"

	"bj/sandbox"
)

// process is a command seen from the host. The reader of the stream puts what
// arrives into pending; deliver takes it out.
type process struct {
	c        *Client
	id       uint32
	callback func(sandbox.Stream, []byte)
	done     chan struct{} // closed when exit or err is final and all before it was delivered

	mu      sync.Mutex
	more    sync.Cond
	pending []event
	size    int  // bytes that were received and not credited
	over    bool // an exit has come
	final   bool // nothing comes any more

	exit sandbox.Exit // before done is closed, deliver's
	err  error
}

// An event is one of output, exit, failure and end.
type event struct {
	stream sandbox.Stream
	data   []byte
	exit   *sandbox.Exit
	err    error
	end    bool
}

func newProcess(c *Client, callback func(sandbox.Stream, []byte)) *process {
	p := &process{c: c, callback: callback, done: make(chan struct{})}
	p.more.L = &p.mu
	return p
}

// Wait implements sandbox.Process.
func (p *process) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-p.done:
		return p.exit, p.err
	default:
	}
	select {
	case <-p.done:
		return p.exit, p.err
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// Done implements sandbox.Process.
func (p *process) Done() <-chan struct{} { return p.done }

// Kill implements sandbox.Process. It returns when they are gone.
func (p *process) Kill(ctx context.Context) error {
	if _, err := p.c.call(ctx, kindKill, target{Command: p.id}, nil); err != nil {
		return fmt.Errorf("killing command: %w", err)
	}
	return nil
}

// Write implements sandbox.Process.
func (p *process) Write(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		n := min(len(b), chunk)
		if err := p.input(ctx, input{Data: b[:n]}); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// CloseInput implements sandbox.Process.
func (p *process) CloseInput(ctx context.Context) error { return p.input(ctx, input{Close: true}) }

// Resize implements sandbox.Process.
func (p *process) Resize(ctx context.Context, size sandbox.Terminal) error {
	return p.input(ctx, input{Size: &size})
}

func (p *process) input(ctx context.Context, m input) error {
	m.Command = p.id
	if _, err := p.c.call(ctx, kindInput, m, nil); err != nil {
		return fmt.Errorf("writing to a command: %w", err)
	}
	return nil
}

// output queues a frame of output. An error means that the guest does not keep
// to the window.
func (p *process) output(f frame) error {
	if len(f.payload) == 0 {
		return nil
	}
	stream := sandbox.Stdout
	if f.kind == kindStderr {
		stream = sandbox.Stderr
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.size += len(f.payload); p.size > window {
		return fmt.Errorf("%w: command %d has sent more than it may", errFrame, f.id)
	}
	// Small frames are joined, so that the window bounds memory too.
	if n := len(p.pending); n > 0 && p.pending[n-1].stream == stream && len(p.pending[n-1].data) < chunk {
		p.pending[n-1].data = append(p.pending[n-1].data, f.payload...)
	} else {
		p.pending = append(p.pending, event{stream: stream, data: f.payload})
	}
	p.more.Signal()
	return nil
}

func (p *process) exited(e sandbox.Exit) error {
	p.mu.Lock()
	over := p.over
	p.over = true
	p.mu.Unlock()
	if over {
		return fmt.Errorf("%w: command %d has ended twice", errFrame, p.id)
	}
	p.put(event{exit: &e})
	return nil
}

func (p *process) ended()         { p.put(event{end: true}) }
func (p *process) fail(err error) { p.put(event{err: err, end: true}) }

// put queues an event that is not output; after the end nothing is queued.
func (p *process) put(e event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.final {
		return
	}
	p.final = e.end
	p.pending = append(p.pending, e)
	p.more.Signal()
}

// deliver calls back until the end.
func (p *process) deliver() {
	consumed := 0
	over := false
	finish := func(exit sandbox.Exit, err error) {
		if !over {
			over = true
			p.exit, p.err = exit, err
			close(p.done)
		}
	}
	for {
		p.mu.Lock()
		for len(p.pending) == 0 {
			p.more.Wait()
		}
		e := p.pending[0]
		p.pending = p.pending[1:]
		p.mu.Unlock()
		switch {
		case e.data != nil:
			p.callback(e.stream, e.data)
			// Not for every frame: a quarter of the window at a time.
			if consumed += len(e.data); consumed >= window/4 {
				p.grant(consumed)
				consumed = 0
			}
		case e.exit != nil:
			finish(*e.exit, nil)
		case e.end:
			// Without an exit before it, the end is a failure of the guest's.
			if e.err == nil {
				e.err = fmt.Errorf("%w: command %d ended without an exit", ErrLost, p.id)
			}
			finish(sandbox.Exit{}, e.err)
			return
		}
	}
}

// grant lets the guest send n more bytes.
func (p *process) grant(n int) {
	p.mu.Lock()
	p.size -= n
	p.mu.Unlock()
	if b, err := encode(kindCredit, p.id, credit{Bytes: n}); err == nil {
		p.c.post(context.Background(), b) // returns at the latest when the machine is lost
	}
}
