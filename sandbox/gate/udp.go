package gate

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxDatagram is the largest datagram, in bytes.
const maxDatagram = 65535

// maxWaiting bounds the datagrams that wait for a flow to be dialled.
const maxWaiting = 64

// flowID tells flows apart: by both ends, and for ICMP by the identifier.
type flowID struct {
	network string
	pair    pair
	echo    uint16
}

// flow is an exchange of datagrams that is carried: those of one source to one
// destination.
type flow struct {
	flowID
	condition int
	out       chan []byte // from the machine
	ctx       context.Context
	close     context.CancelFunc
	mu        sync.Mutex
	last      time.Time // when something was carried, either way
}

func (f *flow) touch() {
	f.mu.Lock()
	f.last = time.Now()
	f.mu.Unlock()
}

func (f *flow) quiet() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.last)
}

func (r *Relay) listenUDP(ctx context.Context) error {
	for n, unit := range append([]string{""}, r.Units...) {
		for _, network := range []string{"udp4", "udp6"} {
			var l net.PacketConn
			err := inside(r.NetNS, func() (err error) {
				lc := net.ListenConfig{Control: transparent}
				l, err = lc.ListenPacket(ctx, network, net.JoinHostPort("", portText(r.UDP+uint16(n))))
				return err
			})
			if errors.Is(err, unix.EAFNOSUPPORT) {
				continue // a kernel without IPv6
			}
			if err != nil {
				return err
			}
			c := l.(*net.UDPConn)
			r.udp = append(r.udp, c)
			r.wg.Go(func() { r.receive(ctx, c, unit) })
		}
	}
	return nil
}

// receive reads the datagrams that a unit, "" for none, has sent, of flows that
// have no socket of their own yet.
func (r *Relay) receive(ctx context.Context, c *net.UDPConn, unit string) {
	b, oob := make([]byte, maxDatagram), make([]byte, 256)
	for {
		n, oobn, _, from, err := c.ReadMsgUDPAddrPort(b, oob)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		to, ok := originalDestination(oob[:oobn])
		if !ok {
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
		if r.forGate(to) {
			r.question(pair{from, to}, unit, b[:n])
			continue
		}
		r.datagram(unit, flowID{network: "udp", pair: pair{from, to}}, b[:n])
	}
}

func originalDestination(oob []byte) (netip.AddrPort, bool) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for i := range msgs {
		sa, err := unix.ParseOrigDstAddr(&msgs[i])
		if err != nil {
			continue
		}
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), true
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), true
		}
	}
	return netip.AddrPort{}, false
}

// datagram gives b, of which it takes a copy, to its flow, and makes that if
// there is none. What a flow cannot take is lost, as datagrams may be.
func (r *Relay) datagram(unit string, id flowID, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.epoch
	if e == nil {
		return
	}
	f := e.flows[id]
	if f == nil {
		condition, ok := e.policy.find(r.names[id.pair.from.Addr()], unit, id.network, id.pair.to)
		if !ok || len(e.flows) >= r.MaxFlows {
			return
		}
		f = &flow{flowID: id, condition: condition, out: make(chan []byte, maxWaiting), last: time.Now()}
		f.ctx, f.close = context.WithCancel(e.ctx)
		e.flows[id] = f
		if id.network == "udp" {
			r.count(condition, 1, 0)
		}
		r.wg.Go(func() {
			r.carryFlow(f)
			f.close()
			r.mu.Lock()
			delete(e.flows, id)
			r.mu.Unlock()
		})
	}
	if id.network == "icmp" {
		r.count(f.condition, 1, 0)
	}
	select {
	case f.out <- append([]byte(nil), b...):
	default:
	}
}

// carryFlow dials and carries until neither side has said anything for a
// while.
func (r *Relay) carryFlow(f *flow) {
	outer, err := r.dial(f.ctx, f.network, f.pair.to)
	if err != nil {
		return
	}
	defer outer.Close()
	inner, err := r.innerEnd(f)
	if err != nil {
		return
	}
	defer inner.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	// Ends whatever waits on either side.
	stop := context.AfterFunc(f.ctx, func() {
		outer.SetDeadline(time.Unix(1, 0))
		inner.SetDeadline(time.Unix(1, 0))
	})
	defer stop()
	defer f.close()

	carried := func(n int) {
		f.touch()
		r.mu.Lock()
		r.count(f.condition, 0, int64(n))
		r.mu.Unlock()
	}
	pump := func(from, to net.Conn) {
		defer f.close()
		b := make([]byte, maxDatagram)
		for {
			n, err := from.Read(b)
			if err != nil {
				return
			}
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
			carried(n)
		}
	}
	wg.Go(func() { pump(outer, inner) })
	wg.Go(func() { pump(inner, outer) })
	timer := time.NewTimer(r.IdleTimeout)
	defer timer.Stop()
	for {
		select {
		case <-f.ctx.Done():
			return
		case b := <-f.out:
			if _, err := outer.Write(b); err != nil {
				return
			}
			carried(len(b))
		case <-timer.C:
			left := r.IdleTimeout - f.quiet()
			if left <= 0 {
				return
			}
			timer.Reset(left)
		}
	}
}

// innerEnd returns the end of a flow that faces the machine. For UDP it is a
// socket with the original destination as its address, to which the kernel
// gives the flow's further datagrams.
func (r *Relay) innerEnd(f *flow) (net.Conn, error) {
	if f.network == "icmp" {
		return &echoEnd{flow: f, raw: r.raw, done: make(chan struct{})}, nil
	}
	var c net.Conn
	err := inside(r.NetNS, func() (err error) {
		network := "udp4"
		if f.pair.to.Addr().Is6() {
			network = "udp6"
		}
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(f.pair.to), Control: transparent}
		c, err = d.DialContext(f.ctx, network, f.pair.from.String())
		return err
	})
	return c, err
}
