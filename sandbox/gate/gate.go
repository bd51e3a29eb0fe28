// Package gate is what stands between a sealed environment and the world: the
// relay. It listens in the hub's network namespace, which has no way out, and
// carries what the policy allows, connection by connection, to connections
// that its owner dials for it.
//
//	Config   ports, marks, limits, and how to dial
//	Relay    carries TCP, UDP and ICMP echo; Seal, Used, Close
//
// The packet filter (package seal) decides what reaches the relay:
//
//	TCP    the first packet of a connection is held in a queue. The relay
//	       dials; if the other side accepts, the packet goes on and the
//	       handshake completes; if it refuses, the packet is answered with a
//	       reset; if nothing comes back, nothing is said.
//	UDP    packets are delivered to a transparent socket with their original
//	       destination, and dialled once for each pair of addresses.
//	ICMP   echo requests come through the queue, and are dialled like UDP.
//	names  questions to the hub's own address are asked again, in other words,
//	       of the servers that the policy names; the others get no answer.
//
// The relay asks the policy again by itself, so that a rule too many opens
// nothing. When it is closed or dies, what is held is dropped, and nothing
// passes.
package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"bj/sandbox"
)

// Limits that hold where Config has zero.
const (
	defaultDialTimeout = 20 * time.Second
	defaultIdleTimeout = 60 * time.Second
	defaultMaxPending  = 512
	defaultMaxConns    = 8192
	defaultMaxFlows    = 1024
)

// acceptTimeout is how long a dialled connection waits for the machine to
// complete its handshake.
const acceptTimeout = 10 * time.Second

// Config says what a relay is. All of the first two groups must be set, as the
// packet filter has them; zero in the last means the default.
type Config struct {
	// NetNS is a descriptor of the hub's network namespace, needed as long as
	// the relay lives; zero is the process's own.
	NetNS    int
	TCP, UDP uint16 // ports of the transparent sockets
	Queue    uint16 // NFQUEUE of held packets
	// Units are the policy's: datagrams of the unit n come to the port UDP + n, and
	// MarkUnit is the mark of held packets that it has sent. Nil if there are none.
	Units    []string
	MarkUnit func(n int) uint32
	// MarkDialled and MarkRefused are verdicts on held packets, MarkReply is on
	// packets that the relay makes.
	MarkDialled, MarkRefused, MarkReply uint32

	Machines []Machine
	// Own are addresses of the hub: never relayed to.
	Own []netip.Addr
	// Dial connects to the outside. Network is "tcp", "udp" or "icmp"; for the
	// last, a Write is one ICMP echo request and a Read one reply, both from the
	// ICMP header on, and identifiers may be changed on the way. An error that
	// is syscall.ECONNREFUSED tells that the other side refused. Called from
	// several goroutines.
	Dial func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)

	// Unanswered is told each question about a name that gets no answer because
	// nothing allows it. It must not call the relay. Nil means nobody is told.
	Unanswered func(Question)
	// Refused is told each request that is not passed on. As Unanswered.
	Refused func(Request)

	DialTimeout time.Duration
	IdleTimeout time.Duration // of UDP and ICMP
	MaxPending  int           // connections being dialled
	MaxConns    int           // TCP connections
	MaxFlows    int           // of UDP and ICMP
}

// Machine is a machine's name and addresses.
type Machine struct {
	Name   string
	V4, V6 netip.Addr
}

// Relay carries what the policy allows. Its methods may be called from several
// goroutines.
type Relay struct {
	Config
	names map[netip.Addr]string
	wg    sync.WaitGroup
	stop  context.CancelFunc // ends what listens
	done  chan struct{}      // closed when the relay ends by itself or is closed

	queue *queue
	tcp   []*net.TCPListener
	udp   []*net.UDPConn
	raw   rawSockets
	asked *names

	mu    sync.Mutex
	epoch *epoch // nil once closed
	uses  map[int]*sandbox.Use
	err   error
}

// epoch is the time between one sealing and the next. All that is relayed
// belongs to one, and ends with it.
type epoch struct {
	ctx    context.Context
	end    context.CancelFunc
	policy *index
	names  []sandbox.Names
	// authority signs what machines are shown; nil if nothing is inspected.
	authority *authority
	pending   map[pair]*pending
	conns     map[*relayed]struct{}
	flows     map[flowID]*flow
}

// pair is the two ends of a connection, as the machine sees them.
type pair struct{ from, to netip.AddrPort }

// Open starts a relay under policy p.
func Open(c Config, p sandbox.Policy) (*Relay, error) {
	if c.Dial == nil {
		return nil, errors.New("opening the relay: no Dial")
	}
	set := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	set(&c.MaxPending, defaultMaxPending)
	set(&c.MaxConns, defaultMaxConns)
	set(&c.MaxFlows, defaultMaxFlows)
	if c.DialTimeout == 0 {
		c.DialTimeout = defaultDialTimeout
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = defaultIdleTimeout
	}
	r := &Relay{Config: c, names: map[netip.Addr]string{}, uses: map[int]*sandbox.Use{}, done: make(chan struct{}), asked: newNames()}
	for _, m := range c.Machines {
		r.names[m.V4], r.names[m.V6] = m.Name, m.Name
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.epoch = r.newEpoch(p)
	if err := r.listen(ctx); err != nil {
		r.Close()
		return nil, fmt.Errorf("opening the relay: %w", err)
	}
	return r, nil
}

func (r *Relay) listen(ctx context.Context) error {
	var err error
	if r.raw, err = openRaw(r.NetNS, r.MarkReply); err != nil {
		return err
	}
	if err := r.listenTCP(ctx); err != nil {
		return err
	}
	if err := r.listenNames(ctx); err != nil {
		return err
	}
	if err := r.listenUDP(ctx); err != nil {
		return err
	}
	r.queue, err = openQueue(ctx, r.NetNS, r.Queue, r.held, r.fail)
	return err
}

func (r *Relay) newEpoch(p sandbox.Policy) *epoch {
	ctx, end := context.WithCancel(context.Background())
	p = p.Narrowed(r.machines())
	return &epoch{
		ctx: ctx, end: end, policy: newIndex(p, r.environment()), names: p.Names, authority: newAuthority(p.Authority),
		pending: map[pair]*pending{}, conns: map[*relayed]struct{}{}, flows: map[flowID]*flow{},
	}
}

func (r *Relay) machines() []string {
	var all []string
	for _, m := range r.Machines {
		all = append(all, m.Name)
	}
	return all
}

// Darken replaces the policy by one in which more is dark, as sandbox.Policy has
// it, and ends only what that had let through.
func (r *Relay) Darken(p sandbox.Policy) error {
	next := newIndex(p.Narrowed(r.machines()), r.environment())
	r.mu.Lock()
	e := r.epoch
	if e == nil {
		r.mu.Unlock()
		return errors.New("sealing the relay: it is closed")
	}
	e.policy, e.names = next, p.Narrowed(r.machines()).Names
	dark := func(from netip.AddrPort, condition int) bool { return p.IsDark(condition, r.names[from.Addr()]) }
	var conns []*relayed
	for c := range e.conns {
		if dark(addrPort(c.in.RemoteAddr()), c.condition) {
			conns = append(conns, c)
		} else if slices.ContainsFunc(c.judged, func(a sandbox.Allow) bool { return dark(addrPort(c.in.RemoteAddr()), a.Condition) }) {
			conns = append(conns, c) // it may have served what is dark now
		}
	}
	var flows []*flow
	for _, f := range e.flows {
		if dark(f.pair.from, f.condition) {
			flows = append(flows, f)
		}
	}
	var waiting []*pending
	for at, w := range e.pending {
		if dark(at.from, w.condition) {
			delete(e.pending, at)
			waiting = append(waiting, w)
		}
	}
	r.mu.Unlock()
	for _, c := range conns {
		c.silence()
	}
	for _, f := range flows {
		f.close()
	}
	for _, w := range waiting {
		w.abandon()
	}
	return nil
}

// environment returns the addresses that are not outside.
func (r *Relay) environment() map[netip.Addr]bool {
	own := map[netip.Addr]bool{}
	for _, a := range r.Own {
		own[a] = true
	}
	for a := range r.names {
		own[a] = true
	}
	return own
}

// Seal replaces the policy, and ends all that is relayed under the old one. It
// is to be called after the packet filter's rules have been replaced, which
// silences the ends that this makes.
func (r *Relay) Seal(p sandbox.Policy) error {
	next := r.newEpoch(p)
	r.mu.Lock()
	old := r.epoch
	if old == nil {
		r.mu.Unlock()
		next.end()
		return errors.New("sealing the relay: it is closed")
	}
	r.epoch = next
	r.mu.Unlock()
	r.finish(old)
	return nil
}

// finish ends all that belongs to e, which is not r's epoch any more.
func (r *Relay) finish(e *epoch) {
	e.end()
	r.mu.Lock()
	var conns []*relayed
	for c := range e.conns {
		conns = append(conns, c)
	}
	var flows []*flow
	for _, f := range e.flows {
		flows = append(flows, f)
	}
	var waiting []*pending
	for _, p := range e.pending {
		waiting = append(waiting, p)
	}
	r.mu.Unlock()
	for _, c := range conns {
		c.abort()
	}
	for _, f := range flows {
		f.close()
	}
	for _, p := range waiting {
		p.abandon()
	}
}

// Done is closed when the relay has ended, by Close or by itself; Err says why.
func (r *Relay) Done() <-chan struct{} { return r.done }

// Err returns why the relay has ended by itself, or nil.
func (r *Relay) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// fail ends the relay because of err: nothing passes any more.
func (r *Relay) fail(err error) {
	r.mu.Lock()
	e := r.epoch
	r.epoch = nil
	if e != nil {
		r.err = err
		close(r.done)
	}
	r.mu.Unlock()
	if e != nil {
		r.finish(e)
	}
	r.stop()
}

// Close ends everything and waits until it has ended.
func (r *Relay) Close() error {
	r.mu.Lock()
	e := r.epoch
	r.epoch = nil
	if e != nil {
		close(r.done)
	}
	r.mu.Unlock()
	r.stop()
	if e != nil {
		r.finish(e)
	}
	r.queue.close()
	for _, l := range r.tcp {
		l.Close()
	}
	for _, c := range append(r.udp, r.asked.replies...) {
		c.Close()
	}
	r.wg.Wait()
	r.raw.close()
	return nil
}

// Used returns how often the conditions have been used through the relay so
// far, connections that are still open included.
func (r *Relay) Used() []sandbox.Use {
	r.mu.Lock()
	defer r.mu.Unlock()
	sums := map[int]sandbox.Use{}
	for i, u := range r.uses {
		sums[i] = *u
	}
	if r.epoch != nil {
		for c := range r.epoch.conns {
			if c.judged != nil {
				continue // its requests have been counted
			}
			u := sums[c.condition]
			u.Condition = c.condition
			u.Bytes += c.transferred()
			sums[c.condition] = u
		}
	}
	return sorted(sums)
}

// count adds to a condition's use. The caller holds r.mu.
func (r *Relay) count(condition int, connections, bytes int64) {
	u := r.uses[condition]
	if u == nil {
		u = &sandbox.Use{Condition: condition}
		r.uses[condition] = u
	}
	u.Count += connections
	u.Bytes += bytes
}

// dial calls Dial with the relay's time-out.
func (r *Relay) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, r.DialTimeout)
	defer cancel()
	conn, err := r.Dial(ctx, network, to)
	if err == nil && ctx.Err() != nil {
		conn.Close()
		return nil, ctx.Err()
	}
	return conn, err
}
