package gate

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// pending is a connection of which the first packet is held, and then, once
// the other side has accepted, one whose handshake is under way.
type pending struct {
	unit      string
	condition int
	judged    []sandbox.Allow // what requests must be; nil for all
	mu        sync.Mutex
	conn      net.Conn // the outer connection, once there is one
	timer     *time.Timer
	over      bool
}

// take returns the outer connection, which is then the caller's.
func (p *pending) take() net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.conn
	p.conn, p.over = nil, true
	if p.timer != nil {
		p.timer.Stop()
	}
	return c
}

func (p *pending) abandon() {
	if c := p.take(); c != nil {
		reset(c)
	}
}

func (r *Relay) listenTCP(ctx context.Context) error {
	for _, network := range []string{"tcp4", "tcp6"} {
		var l net.Listener
		err := inside(r.NetNS, func() (err error) {
			lc := net.ListenConfig{Control: transparent}
			lc.SetMultipathTCP(false)
			l, err = lc.Listen(ctx, network, net.JoinHostPort("", portText(r.TCP)))
			return err
		})
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return err
		}
		t := l.(*net.TCPListener)
		r.tcp = append(r.tcp, t)
		r.wg.Go(func() { r.accept(ctx, t) })
	}
	return nil
}

// open dials for a held packet and then decides about it. Packets that come
// while it dials are repetitions, and dropped.
func (r *Relay) open(q *queue, p packet) {
	r.mu.Lock()
	e := r.epoch
	if e == nil || e.pending[p.pair] != nil || len(e.pending) >= r.MaxPending || len(e.conns) >= r.MaxConns {
		r.mu.Unlock()
		q.drop(p)
		return
	}
	unit := r.unitOf(p)
	condition, judged, ok := e.policy.match(r.names[p.pair.from.Addr()], unit, "tcp", p.pair.to)
	if !ok {
		r.mu.Unlock()
		q.drop(p)
		return
	}
	if len(judged) > 0 {
		condition = judged[0].Condition
	}
	w := &pending{unit: unit, condition: condition, judged: judged}
	e.pending[p.pair] = w
	r.wg.Add(1)
	r.mu.Unlock()
	go func() {
		defer r.wg.Done()
		conn, err := r.dial(e.ctx, "tcp", p.pair.to)
		if err != nil {
			r.forget(e, p.pair, w)
			if e.ctx.Err() == nil && errors.Is(err, unix.ECONNREFUSED) {
				q.pass(p, r.MarkRefused)
			} else {
				q.drop(p)
			}
			return
		}
		w.mu.Lock()
		if w.over || e.ctx.Err() != nil {
			w.mu.Unlock()
			r.forget(e, p.pair, w)
			reset(conn)
			q.drop(p)
			return
		}
		w.conn = conn
		w.timer = time.AfterFunc(acceptTimeout, func() {
			r.forget(e, p.pair, w)
			w.abandon()
		})
		w.mu.Unlock()
		q.pass(p, r.MarkDialled)
	}()
}

func (r *Relay) forget(e *epoch, at pair, w *pending) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.pending[at] == w {
		delete(e.pending, at)
	}
}

// accept joins machines' connections with those that were dialled for them.
func (r *Relay) accept(ctx context.Context, l *net.TCPListener) {
	for {
		in, err := l.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, say: those that wait are not lost.
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		at := pair{addrPort(in.RemoteAddr()), addrPort(in.LocalAddr())}
		r.mu.Lock()
		e := r.epoch
		var w *pending
		if e != nil {
			w = e.pending[at]
			delete(e.pending, at)
		}
		var out net.Conn
		if w != nil {
			out = w.take()
		}
		if out == nil {
			r.mu.Unlock()
			reset(in)
			continue
		}
		c := &relayed{in: in, out: out, unit: w.unit, condition: w.condition, judged: w.judged}
		e.conns[c] = struct{}{}
		if c.judged == nil {
			r.count(w.condition, 1, 0)
		}
		r.wg.Add(1)
		authority := e.authority
		r.mu.Unlock()
		go func() {
			defer r.wg.Done()
			var n int64
			if c.judged == nil {
				n = c.carry()
			} else {
				j := &judge{relay: r, conn: c, ctx: e.ctx, authority: authority, machine: r.names[at.from.Addr()], pair: at}
				j.carry()
			}
			r.mu.Lock()
			delete(e.conns, c)
			r.count(c.condition, 0, n)
			r.mu.Unlock()
			c.release()
		}()
	}
}

// relayed is a connection that is carried.
type relayed struct {
	in        *net.TCPConn // the machine's
	out       net.Conn     // the world's
	unit      string
	condition int
	judged    []sandbox.Allow
}

// carry copies both ways until both have ended. The end of one direction is
// passed on as such; a failure ends both at once, with a reset. It returns how
// many bytes it has carried.
func (c *relayed) carry() int64 {
	var wg sync.WaitGroup
	var carried atomic.Int64
	copyTo := func(to, from net.Conn) {
		// io.Copy between TCP connections is splice(2): no copy in user space.
		n, err := io.Copy(to, from)
		carried.Add(n)
		if err != nil {
			c.abort()
			return
		}
		half, ok := to.(interface{ CloseWrite() error })
		if !ok || half.CloseWrite() != nil {
			c.abort()
		}
	}
	wg.Go(func() { copyTo(c.out, c.in) })
	wg.Go(func() { copyTo(c.in, c.out) })
	wg.Wait()
	return carried.Load()
}

// abort interrupts carry; both sides get a reset once it has ended.
func (c *relayed) abort() {
	past := time.Unix(1, 0)
	for _, conn := range []net.Conn{c.in, c.out} {
		if l, ok := conn.(interface{ SetLinger(int) error }); ok {
			_ = l.SetLinger(0)
		}
		_ = conn.SetDeadline(past)
	}
}

// silence ends carry without a word to the machine: as where the other side has
// lost its power.
func (c *relayed) silence() {
	if raw, err := c.in.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) })
	}
	if l, ok := c.out.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	past := time.Unix(1, 0)
	_ = c.in.SetDeadline(past)
	_ = c.out.SetDeadline(past)
}

func (c *relayed) release() {
	c.in.Close()
	c.out.Close()
}

// transferred returns the bytes carried so far, both ways, as the kernel counts
// them: io.Copy tells only in the end.
func (c *relayed) transferred() int64 {
	raw, err := c.in.SyscallConn()
	if err != nil {
		return 0
	}
	var n int64
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = int64(info.Bytes_received) + int64(info.Bytes_acked)
		}
	})
	return n
}

// reset closes a connection with a reset instead of an orderly end.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	c.Close()
}

func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
