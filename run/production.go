package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"bj/run/event"
)

// probeLimit is how long an endpoint in production may take to answer.
const probeLimit = 5 * time.Second

// hostDial connects to production by this host's network. ICMP needs a ping
// socket, which the host must let ordinary users have.
func hostDial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if network == "icmp" {
		return dialPing(to.Addr())
	}
	var d net.Dialer
	return d.DialContext(ctx, network, to.String())
}

// dialPing returns a socket for echo requests to a, and their replies.
func dialPing(a netip.Addr) (net.Conn, error) {
	a = a.Unmap()
	family, protocol, to := syscall.AF_INET, syscall.IPPROTO_ICMP, syscall.Sockaddr(nil)
	if a.Is4() {
		to = &syscall.SockaddrInet4{Addr: a.As4()}
	} else {
		family, protocol, to = syscall.AF_INET6, syscall.IPPROTO_ICMPV6, &syscall.SockaddrInet6{Addr: a.As16()}
	}
	fd, err := syscall.Socket(family, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("opening a ping socket: %w (net.ipv4.ping_group_range must name a group of this user)", err)
	}
	file := os.NewFile(uintptr(fd), "ping")
	defer file.Close() // FileConn duplicates it
	if err := syscall.Connect(fd, to); err != nil {
		return nil, fmt.Errorf("connecting a ping socket: %w", err)
	}
	return net.FileConn(file)
}

// probe says that production is contacted, and tries every endpoint that can
// be tried. A recipe without conditions contacts nothing and says nothing.
func (x *execution) probe() *failure {
	p := x.plan
	if len(p.Contacts) == 0 {
		return nil
	}
	var tried, untried []string
	for _, c := range p.Contacts {
		if c.tried() {
			tried = append(tried, c.Endpoint.URL)
		} else {
			untried = append(untried, c.Endpoint.URL)
		}
	}
	text := "production is contacted: " + strings.Join(append(tried, untried...), ", ")
	if len(untried) > 0 {
		text += fmt.Sprintf(" (not tried before the run: %s)", strings.Join(untried, ", "))
	}
	x.voice.emit(event.Event{Event: event.Note, Text: text})

	for _, c := range p.Contacts {
		if f := x.pingable(c); f != nil {
			return f
		}
	}
	failures := make([]*failure, len(p.Contacts))
	var all sync.WaitGroup
	slots := make(chan struct{}, 32)
	for i, c := range p.Contacts {
		if !c.tried() {
			continue
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			failures[i] = x.probeOne(c)
		})
	}
	all.Wait()
	if f := stopped(x.group); f != nil {
		return f
	}
	for _, f := range failures {
		if f != nil {
			return f
		}
	}
	return nil
}

// pingable finds out whether this host lets bj carry echo requests, if c needs
// that. It sends none.
func (x *execution) pingable(c Contact) *failure {
	if c.Endpoint.Scheme != "icmp" || !c.Endpoint.Prefix.IsValid() {
		return nil
	}
	ctx, cancel := within(x.group, probeLimit)
	defer cancel()
	conn, err := x.Dial(ctx, "icmp", netip.AddrPortFrom(c.Endpoint.Prefix.Addr(), 0))
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.EACCES) {
		return nil
	}
	condition := x.plan.Recipe.Conditions[c.Condition]
	return &failure{code: codeLimits,
		message: fmt.Sprintf("this host cannot carry what the condition %s (%s) allows: %v", condition.Text, condition.Pos, err),
		hint:    "sysctl -w net.ipv4.ping_group_range='0 2147483647'"}
}

// probeOne connects to an endpoint once.
func (x *execution) probeOne(c Contact) *failure {
	err := error(nil)
	if c.Endpoint.Scheme == "unix" {
		err = x.knock(c.Endpoint.Path)
	} else {
		err = x.connect(c.Probe)
	}
	if err == nil {
		return nil
	}
	condition := x.plan.Recipe.Conditions[c.Condition]
	return &failure{code: codeCondition,
		message: fmt.Sprintf("the condition %s (%s) is not met: %s does not answer: %v", condition.Text, condition.Pos, c.Endpoint.URL, err),
		hint:    conditionHint}
}

const conditionHint = "what is allowed must be healthy; bring it back first, or take it from its own recipe with --supply recipes"

// tried reports whether it can be known before the run that a contact answers.
func (c Contact) tried() bool { return c.Probe.IsValid() || c.Endpoint.Scheme == "unix" }

// knock tries to reach a daemon of this host once.
func (x *execution) knock(path string) error {
	ctx, cancel := within(x.group, probeLimit)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, syscall.EPROTOTYPE) {
		return errors.New("it takes no streams, and other sockets cannot be opened")
	}
	if err == nil {
		conn.Close()
	}
	return err
}

// connect tries to reach production once.
func (x *execution) connect(to netip.AddrPort) error {
	ctx, cancel := within(x.group, probeLimit)
	defer cancel()
	conn, err := x.Dial(ctx, "tcp", to)
	if err == nil {
		conn.Close()
	} else if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("silent for %s", probeLimit)
	}
	return err
}
